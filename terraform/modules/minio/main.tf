# User data of a machine that runs MinIO, with a user for each kind of process. All secrets are made on the host.

locals {
  setup = templatefile("${path.module}/templates/setup.sh.tftpl", {
    bucket          = var.bucket
    region          = var.region
    kinds           = sort(keys(var.policies))
    publish_command = var.publish_command
    data_device     = var.data_device
    server          = var.server
    client          = var.client
  })
  unit = file("${path.module}/templates/minio.service")
}
