# Every kind of file that hosts are given, for the tools that check such files (check.sh).

locals {
  common = {
    nodes = {
      node-a = { address = "10.0.0.1", zone = "z1" }
      node-b = { address = "10.0.0.2", zone = "z2", environment = { CARTWHEEL_LOG = "info,cartwheel_storage_node=debug" } }
      node-c = { address = "fd00::3", zone = "z3" }
    }
    gateways = { one = { address = "10.0.1.1" } }
    sha256   = "0000000000000000000000000000000000000000000000000000000000000000"
  }
}

module "role" {
  source   = "../.."
  bucket   = "carts"
  nodes    = local.common.nodes
  gateways = local.common.gateways
  binary   = { url = "s3://artefacts/cartwheel", sha256 = local.common.sha256 }
}

module "file" {
  source   = "../.."
  bucket   = "carts"
  prefix   = "prod"
  endpoint = "https://store.example.org"
  nodes    = local.common.nodes
  gateways = local.common.gateways
  secrets  = { env_file = "/etc/cartwheel/secrets.env" }
  binary   = { url = "https://example.org/cartwheel", sha256 = local.common.sha256 }
}

module "fetched" {
  source   = "../.."
  bucket   = "carts"
  nodes    = local.common.nodes
  gateways = local.common.gateways
  secrets  = { fetch_command = "aws ssm get-parameter --name \"/carts/$kind\" --with-decryption --query Parameter.Value --output text" }
}

module "minio" {
  source   = "../../../minio"
  bucket   = "carts"
  policies = module.file.bucket_policies
  server   = { url = "https://example.org/minio", sha256 = local.common.sha256 }
  client   = { url = "https://example.org/mc", sha256 = local.common.sha256 }
}

module "minio_published" {
  source          = "../../../minio"
  bucket          = "carts"
  policies        = module.role.bucket_policies
  data_device     = "/dev/nvme1n1"
  publish_command = "aws ssm put-parameter --name \"/carts/$kind\" --type SecureString --overwrite --value \"file://$file\""
  server          = { url = "https://example.org/minio", sha256 = local.common.sha256 }
  client          = { url = "https://example.org/mc", sha256 = local.common.sha256 }
}

output "files" {
  description = "Contents by file name; the ending says what it is."
  value = merge(concat(
    [for name, hosts in { role = merge(module.role.nodes, module.role.gateways), file = merge(module.file.nodes, module.file.gateways), fetched = merge(module.fetched.nodes, module.fetched.gateways) } :
      merge([for id, host in hosts : merge(
        {
          "${name}-${id}-user-data.yaml" = host.user_data
          "${name}-${host.unit_name}"    = host.unit
          "${name}-${id}.env"            = host.env_file
          "${name}-${id}-install.sh"     = host.install_script
        },
        host.secrets_script == null ? {} : { "${name}-${id}-secrets.sh" = host.secrets_script },
      )]...)
    ],
    [for name, minio in { minio = module.minio, minio_published = module.minio_published } : {
      "${name}-user-data.yaml"  = minio.user_data
      "${name}.service"         = minio.unit
      "${name}-setup.sh"        = minio.setup_script
    }],
  )...)
}
