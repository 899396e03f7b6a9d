resource "aws_security_group" "node" {
  name        = "${var.name}-node"
  description = "Storage nodes: called by members alone"
  vpc_id      = aws_vpc.this.id
}

resource "aws_security_group" "gateway" {
  name        = "${var.name}-gateway"
  description = "Gateways: called by the load balancer alone"
  vpc_id      = aws_vpc.this.id
}

resource "aws_security_group" "lb" {
  name        = "${var.name}-lb"
  description = "The load balancer: called by clients"
  vpc_id      = aws_vpc.this.id
}

# Frames and gossip: nodes and gateways call nodes.
resource "aws_vpc_security_group_ingress_rule" "frames" {
  for_each                     = { node = aws_security_group.node.id, gateway = aws_security_group.gateway.id }
  security_group_id            = aws_security_group.node.id
  referenced_security_group_id = each.value
  description                  = "frames from ${each.key}s"
  ip_protocol                  = "tcp"
  from_port                    = 7101
  to_port                      = 7101
}

resource "aws_vpc_security_group_ingress_rule" "gateway" {
  security_group_id            = aws_security_group.gateway.id
  referenced_security_group_id = aws_security_group.lb.id
  description                  = "requests from the load balancer"
  ip_protocol                  = "tcp"
  from_port                    = 8080
  to_port                      = 8080
}

resource "aws_vpc_security_group_ingress_rule" "client" {
  for_each          = toset(var.client_cidrs)
  security_group_id = aws_security_group.lb.id
  description       = "clients"
  cidr_ipv4         = each.value
  ip_protocol       = "tcp"
  from_port         = local.lb_port
  to_port           = local.lb_port
}

resource "aws_vpc_security_group_egress_rule" "lb" {
  security_group_id            = aws_security_group.lb.id
  referenced_security_group_id = aws_security_group.gateway.id
  description                  = "to gateways"
  ip_protocol                  = "tcp"
  from_port                    = 8080
  to_port                      = 8080
}

resource "aws_vpc_security_group_ingress_rule" "ssh" {
  for_each = {
    for pair in setproduct(["node", "gateway"], var.ssh_cidrs) : join(" ", pair) => { kind = pair[0], cidr = pair[1] }
  }
  security_group_id = each.value.kind == "node" ? aws_security_group.node.id : aws_security_group.gateway.id
  description       = "ssh"
  cidr_ipv4         = each.value.cidr
  ip_protocol       = "tcp"
  from_port         = 22
  to_port           = 22
}

# Members call each other, and S3 through its endpoint; there is no route to anywhere else.
resource "aws_vpc_security_group_egress_rule" "member" {
  for_each          = { node = aws_security_group.node.id, gateway = aws_security_group.gateway.id }
  security_group_id = each.value
  description       = "members and the object store"
  cidr_ipv4         = "0.0.0.0/0"
  ip_protocol       = "-1"
}

resource "aws_security_group" "minio" {
  count       = local.minio ? 1 : 0
  name        = "${var.name}-minio"
  description = "MinIO: called by members alone"
  vpc_id      = aws_vpc.this.id
}

resource "aws_vpc_security_group_ingress_rule" "minio" {
  for_each                     = local.minio ? { node = aws_security_group.node.id, gateway = aws_security_group.gateway.id } : {}
  security_group_id            = aws_security_group.minio[0].id
  referenced_security_group_id = each.value
  description                  = "objects for ${each.key}s"
  ip_protocol                  = "tcp"
  from_port                    = 9000
  to_port                      = 9000
}

resource "aws_vpc_security_group_egress_rule" "minio" {
  count             = local.minio ? 1 : 0
  security_group_id = aws_security_group.minio[0].id
  description       = "downloads and the parameter store"
  cidr_ipv4         = "0.0.0.0/0"
  ip_protocol       = "tcp"
  from_port         = 443
  to_port           = 443
}

resource "aws_security_group" "endpoint" {
  count       = local.minio ? 1 : 0
  name        = "${var.name}-endpoint"
  description = "The parameter store"
  vpc_id      = aws_vpc.this.id
}

resource "aws_vpc_security_group_ingress_rule" "endpoint" {
  for_each = local.minio ? {
    node = aws_security_group.node.id, gateway = aws_security_group.gateway.id, minio = aws_security_group.minio[0].id
  } : {}
  security_group_id            = aws_security_group.endpoint[0].id
  referenced_security_group_id = each.value
  description                  = "https from ${each.key}"
  ip_protocol                  = "tcp"
  from_port                    = 443
  to_port                      = 443
}
