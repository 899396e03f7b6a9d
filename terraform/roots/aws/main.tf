# A cluster on EC2: S3 (or MinIO on a machine), instances in private subnets over the zones, a load balancer before the
# gateways. Hosts carry no secrets: they act by their roles, and the cluster's own secret lies in the bucket.

locals {
  subnet_cidrs = { for i, zone in var.zones : zone => cidrsubnet(var.vpc_cidr, 8, i + 1) }
  node_ips     = { for id, node in var.nodes : id => cidrhost(local.subnet_cidrs[node.zone], node.number) }
  gateway_ips  = { for id, gateway in var.gateways : id => cidrhost(local.subnet_cidrs[gateway.zone], gateway.number) }
  minio        = var.object_store == "minio"
  minio_ip     = cidrhost(cidrsubnet(var.vpc_cidr, 8, 101), 200)
  # Names of parameters, not what is in them.
  parameters = { for kind in ["storage-node", "gateway"] : kind => "/${var.name}/${kind}" }
}

data "aws_caller_identity" "this" {}

module "cluster" {
  source = "../../modules/cluster"

  name         = var.name
  bucket       = var.bucket
  prefix       = var.prefix
  region       = var.region
  endpoint     = local.minio ? "http://${local.minio_ip}:9000" : null
  replicas     = var.replicas
  expect_nodes = var.expect_nodes
  nodes = {
    for id, node in var.nodes : id => {
      address = local.node_ips[id]
      zone    = node.zone
      weight  = node.weight
      memory  = node.memory
    }
  }
  gateways = { for id in keys(var.gateways) : id => { address = local.gateway_ips[id] } }
  binary = {
    url     = "s3://${var.binary.bucket}/${var.binary.key}"
    sha256  = var.binary.sha256
    version = var.binary.version
  }
  secrets = local.minio ? {
    fetch_command = "aws ssm get-parameter --region ${var.region} --name \"/${var.name}/$kind\" --with-decryption --query Parameter.Value --output text"
  } : {}
}

module "minio" {
  source = "../../modules/minio"
  count  = local.minio ? 1 : 0

  bucket          = var.bucket
  region          = var.region
  policies        = module.cluster.bucket_policies
  server          = var.minio.server
  client          = var.minio.client
  data_device     = "/dev/nvme1n1"
  publish_command = "aws ssm put-parameter --region ${var.region} --name \"/${var.name}/$kind\" --type SecureString --overwrite --value \"file://$file\""
}

module "membership" {
  source = "../../modules/membership"
  count  = var.membership.enabled ? 1 : 0

  nodes       = { for id, node in var.nodes : id => { weight = node.weight, zone = node.zone } }
  gateway_url = coalesce(var.membership.gateway_url, local.url)
  binary      = var.membership.binary
  marks       = "${path.module}/.cartwheel-marks"

  depends_on = [
    aws_instance.node, aws_instance.gateway, aws_instance.minio, aws_lb_target_group_attachment.gateway, aws_lb_listener.http,
    aws_vpc_security_group_ingress_rule.frames, aws_vpc_security_group_ingress_rule.gateway,
    aws_iam_role_policy.objects, aws_vpc_endpoint.s3,
  ]
}
