resource "hcloud_load_balancer" "this" {
  name               = var.name
  load_balancer_type = var.load_balancer.type
  location           = var.load_balancer.location
}

resource "hcloud_load_balancer_network" "this" {
  load_balancer_id        = hcloud_load_balancer.this.id
  network_id              = hcloud_network.this.id
  ip                      = local.lb_ip
  enable_public_interface = var.load_balancer.public
  depends_on              = [hcloud_network_subnet.this]
}

resource "hcloud_load_balancer_target" "gateway" {
  for_each         = hcloud_server.gateway
  type             = "server"
  load_balancer_id = hcloud_load_balancer.this.id
  server_id        = each.value.id
  use_private_ip   = true
  depends_on       = [hcloud_load_balancer_network.this]
}

data "hcloud_certificate" "this" {
  count = var.load_balancer.certificate == null ? 0 : 1
  name  = var.load_balancer.certificate
}

resource "hcloud_load_balancer_service" "http" {
  load_balancer_id = hcloud_load_balancer.this.id
  protocol         = var.load_balancer.certificate == null ? "http" : "https"
  listen_port      = var.load_balancer.certificate == null ? 80 : 443
  destination_port = 8080

  dynamic "http" {
    for_each = data.hcloud_certificate.this
    content {
      certificates = [http.value.id]
    }
  }
  health_check {
    protocol = "http"
    port     = 8080
    interval = 5
    timeout  = 2
    retries  = 2

    http {
      path         = "/readyz"
      status_codes = ["200"]
    }
  }
}

module "membership" {
  source = "../../modules/membership"
  count  = var.membership.enabled ? 1 : 0

  nodes       = { for id, node in var.nodes : id => { weight = node.weight, zone = node.location } }
  gateway_url = coalesce(var.membership.gateway_url, local.url)
  binary      = var.membership.binary
  marks       = "${path.module}/.cartwheel-marks"

  depends_on = [
    hcloud_server.node, hcloud_server.gateway, hcloud_server.minio, hcloud_volume_attachment.minio,
    hcloud_load_balancer_target.gateway, hcloud_load_balancer_service.http,
  ]
}

output "url" {
  description = "Where clients are served."
  value       = local.url
}

output "hosts" {
  description = "Public addresses, for ssh."
  value       = { for server in concat(values(hcloud_server.node), values(hcloud_server.gateway), hcloud_server.minio) : server.name => server.ipv4_address }
}

output "summary" {
  value = module.cluster.summary
}
