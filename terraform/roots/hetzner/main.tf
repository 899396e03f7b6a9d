# A cluster on Hetzner Cloud: machines in a private network over the locations, a load balancer before the gateways, and
# object storage or MinIO. There is no store of secrets: you put the credentials on each host (README), and the services
# wait for them.

locals {
  subnet_cidr = cidrsubnet(var.network_cidr, 8, 1)
  node_ips    = { for id, node in var.nodes : id => cidrhost(local.subnet_cidr, node.number) }
  gateway_ips = { for id, gateway in var.gateways : id => cidrhost(local.subnet_cidr, gateway.number) }
  minio       = var.object_storage == null
  minio_ip    = cidrhost(local.subnet_cidr, 200)
  lb_ip       = cidrhost(local.subnet_cidr, 201)
  url         = "${var.load_balancer.certificate == null ? "http" : "https"}://${var.load_balancer.public ? hcloud_load_balancer.this.ipv4 : local.lb_ip}"
}

module "cluster" {
  source = "../../modules/cluster"

  name         = var.name
  bucket       = var.bucket
  prefix       = var.prefix
  endpoint     = local.minio ? "http://${local.minio_ip}:9000" : var.object_storage.endpoint
  region       = local.minio ? "us-east-1" : var.object_storage.region
  replicas     = var.replicas
  expect_nodes = var.expect_nodes
  nodes = {
    for id, node in var.nodes : id => {
      address = local.node_ips[id]
      zone    = node.location
      weight  = node.weight
      memory  = node.memory
    }
  }
  gateways = { for id in keys(var.gateways) : id => { address = local.gateway_ips[id] } }
  binary   = var.binary
  secrets  = { env_file = "/etc/cartwheel/secrets.env" }
}

module "minio" {
  source = "../../modules/minio"
  count  = local.minio ? 1 : 0

  bucket      = var.bucket
  policies    = module.cluster.bucket_policies
  server      = var.minio.server
  client      = var.minio.client
  data_device = "/dev/disk/by-id/scsi-0HC_Volume_${hcloud_volume.minio[0].id}"
}

resource "hcloud_network" "this" {
  name     = var.name
  ip_range = var.network_cidr
}

resource "hcloud_network_subnet" "this" {
  network_id   = hcloud_network.this.id
  type         = "cloud"
  network_zone = var.network_zone
  ip_range     = local.subnet_cidr
}

# What comes by the public address: ssh from you, nothing else. The private network is not filtered by Hetzner: have
# nothing but this cluster in it.
resource "hcloud_firewall" "this" {
  name = var.name

  dynamic "rule" {
    for_each = length(var.ssh_cidrs) > 0 ? [var.ssh_cidrs] : []
    content {
      description = "ssh"
      direction   = "in"
      protocol    = "tcp"
      port        = "22"
      source_ips  = rule.value
    }
  }
}

# Different hardware: at most ten machines in a group, so each location has its own.
resource "hcloud_placement_group" "node" {
  for_each = toset([for node in values(var.nodes) : node.location])
  name     = "${var.name}-${each.key}"
  type     = "spread"
}

# User data counts at first boot alone, so a change of it (or of the image) replaces nobody. Put a new machine under a node
# with: terraform apply -replace='hcloud_server.node["node-a"]', one after the other.
resource "hcloud_server" "node" {
  for_each           = var.nodes
  name               = "${var.name}-${each.key}"
  image              = var.image
  server_type        = each.value.server_type
  location           = each.value.location
  ssh_keys           = var.ssh_keys
  firewall_ids       = [hcloud_firewall.this.id]
  placement_group_id = hcloud_placement_group.node[each.value.location].id
  user_data          = module.cluster.nodes[each.key].user_data
  labels             = { cluster = var.name, kind = "storage-node" }

  network {
    network_id = hcloud_network.this.id
    ip         = local.node_ips[each.key]
    alias_ips  = []
  }
  lifecycle {
    ignore_changes = [image, user_data, ssh_keys]
  }
  depends_on = [hcloud_network_subnet.this]
}

resource "hcloud_server" "gateway" {
  for_each     = var.gateways
  name         = "${var.name}-gateway-${each.key}"
  image        = var.image
  server_type  = each.value.server_type
  location     = each.value.location
  ssh_keys     = var.ssh_keys
  firewall_ids = [hcloud_firewall.this.id]
  user_data    = module.cluster.gateways[each.key].user_data
  labels       = { cluster = var.name, kind = "gateway" }

  network {
    network_id = hcloud_network.this.id
    ip         = local.gateway_ips[each.key]
    alias_ips  = []
  }
  lifecycle {
    ignore_changes = [image, user_data, ssh_keys]
  }
  depends_on = [hcloud_network_subnet.this]
}

resource "hcloud_volume" "minio" {
  count    = local.minio ? 1 : 0
  name     = "${var.name}-minio"
  size     = var.minio.disk_gib
  location = var.minio.location
}

resource "hcloud_server" "minio" {
  count        = local.minio ? 1 : 0
  name         = "${var.name}-minio"
  image        = var.image
  server_type  = var.minio.server_type
  location     = var.minio.location
  ssh_keys     = var.ssh_keys
  firewall_ids = [hcloud_firewall.this.id]
  user_data    = module.minio[0].user_data
  labels       = { cluster = var.name, kind = "minio" }

  network {
    network_id = hcloud_network.this.id
    ip         = local.minio_ip
    alias_ips  = []
  }
  lifecycle {
    ignore_changes = [image, user_data, ssh_keys]
  }
  depends_on = [hcloud_network_subnet.this]
}

resource "hcloud_volume_attachment" "minio" {
  count     = local.minio ? 1 : 0
  volume_id = hcloud_volume.minio[0].id
  server_id = hcloud_server.minio[0].id
}
