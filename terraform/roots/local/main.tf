# A whole cluster as processes of this machine, on loopback.
#
# What depends on what, and so comes later and goes earlier:
#
#   folder <- s3 <- member <- process        (a node)
#                        ^----- gateway <- gateway_process <- share, namespace
#
# A member stands for a node's place in the ring: it is left only when the member goes. A process is what runs now: it is
# started again, in place, when its settings, the program or the machine change. Gateways go before members, so when all is
# destroyed no gateway is left to ask, and no node hands over what it holds to others that go as well.

locals {
  state_dir = startswith(var.state_dir, "/") ? var.state_dir : abspath("${path.module}/${var.state_dir}")
  binary    = startswith(var.binary, "/") ? var.binary : abspath("${path.module}/${var.binary}")
  script    = "${path.module}/scripts/local.sh"
  bucket    = "cartwheel"

  # A new build under the same path is a new program.
  binary_hash = fileexists(local.binary) ? filesha256(local.binary) : "absent"

  nodes = var.nodes != null ? var.nodes : {
    for i in range(var.node_count) : "node-${substr("abcdefghijklmnopqrstuvwxyz", i, 1)}" => {
      port    = var.node_base_port + i
      zone    = "z${i % 3 + 1}"
      weight  = lookup(var.weights, "node-${substr("abcdefghijklmnopqrstuvwxyz", i, 1)}", 1)
      memory  = var.memory
      machine = lookup(var.machines, "node-${substr("abcdefghijklmnopqrstuvwxyz", i, 1)}", 1)
    }
  }
}

module "cluster" {
  source = "../../modules/cluster"

  name     = "local"
  bucket   = local.bucket
  prefix   = "local"
  endpoint = "http://127.0.0.1:${var.s3_port}"
  replicas = var.replicas
  nodes = {
    for id, node in local.nodes : id => {
      address        = "127.0.0.1"
      listen_address = "127.0.0.1"
      port           = node.port
      zone           = node.zone
      weight         = node.weight
      memory         = node.memory
      data_dir       = "${local.state_dir}/data/${id}"
    }
  }
  gateways = {
    for i in range(var.gateway_count) : "gateway-${i + 1}" => {
      address        = "127.0.0.1"
      listen_address = "127.0.0.1"
      port           = var.gateway_base_port + i
    }
  }
  namespaces = var.namespaces
  binary     = { path = local.binary, version = substr(local.binary_hash, 0, 12) }
  log_format = "text"
}

# What provisioners that destroy need has to be in a resource's own input.

resource "terraform_data" "folder" {
  input            = { script = local.script, state_dir = local.state_dir }
  triggers_replace = local.state_dir

  provisioner "local-exec" {
    command     = "${self.input.script} folder-make"
    environment = { STATE_DIR = self.input.state_dir }
  }
  provisioner "local-exec" {
    when        = destroy
    command     = "${self.input.script} folder-remove"
    environment = { STATE_DIR = self.input.state_dir }
  }
}

resource "terraform_data" "s3" {
  depends_on       = [terraform_data.folder]
  input            = { script = local.script, state_dir = local.state_dir }
  triggers_replace = [local.state_dir, local.binary, local.binary_hash, var.s3_port]

  provisioner "local-exec" {
    command     = "${self.input.script} s3-start ${var.s3_port} ${local.bucket}"
    environment = { STATE_DIR = self.input.state_dir, BINARY = local.binary }
  }
  provisioner "local-exec" {
    when        = destroy
    command     = "${self.input.script} s3-stop"
    environment = { STATE_DIR = self.input.state_dir }
  }
}

resource "terraform_data" "member" {
  for_each         = local.nodes
  depends_on       = [terraform_data.s3]
  input            = { script = local.script, state_dir = local.state_dir, binary = local.binary, id = each.key }
  triggers_replace = local.state_dir

  provisioner "local-exec" {
    when        = destroy
    command     = "${self.input.script} member-remove ${self.input.id}"
    environment = { STATE_DIR = self.input.state_dir, BINARY = self.input.binary }
  }
}

resource "terraform_data" "process" {
  for_each   = local.nodes
  depends_on = [terraform_data.member]
  triggers_replace = [
    terraform_data.member[each.key].id, module.cluster.nodes[each.key].restart_key, local.binary_hash, each.value.machine,
  ]

  provisioner "local-exec" {
    command = "${local.script} process-start storage-node ${each.key} ${each.value.port} ${each.value.machine}"
    environment = {
      STATE_DIR   = local.state_dir
      BINARY      = local.binary
      ENVIRONMENT = module.cluster.nodes[each.key].env_file
    }
  }
}

resource "terraform_data" "gateway" {
  for_each         = module.cluster.gateways
  depends_on       = [terraform_data.member, terraform_data.process]
  input            = { script = local.script, state_dir = local.state_dir, id = each.key }
  triggers_replace = local.state_dir

  provisioner "local-exec" {
    when        = destroy
    command     = "${self.input.script} gateway-remove ${self.input.id}"
    environment = { STATE_DIR = self.input.state_dir }
  }
}

resource "terraform_data" "gateway_process" {
  for_each         = module.cluster.gateways
  depends_on       = [terraform_data.gateway]
  triggers_replace = [terraform_data.gateway[each.key].id, each.value.restart_key, local.binary_hash]

  provisioner "local-exec" {
    command = "${local.script} process-start gateway ${each.key} ${each.value.port} 1"
    environment = {
      STATE_DIR   = local.state_dir
      BINARY      = local.binary
      ENVIRONMENT = each.value.env_file
    }
  }
}

# The ring knows a node's weight and zone from when it joined; this tells it of others.
resource "terraform_data" "share" {
  for_each         = local.nodes
  depends_on       = [terraform_data.process, terraform_data.gateway_process]
  triggers_replace = [terraform_data.member[each.key].id, each.value.weight, each.value.zone]

  provisioner "local-exec" {
    command     = "${local.script} share ${each.key} ${each.value.weight} ${each.value.zone}"
    environment = { STATE_DIR = local.state_dir, BINARY = local.binary }
  }
}

resource "terraform_data" "namespace" {
  for_each         = module.cluster.namespace_commands
  depends_on       = [terraform_data.share]
  triggers_replace = [local.state_dir, each.value]

  provisioner "local-exec" {
    command     = "${local.script} ${replace(each.value, "cartwheel namespace set", "namespace-set")}"
    environment = { STATE_DIR = local.state_dir, BINARY = local.binary }
  }
}
