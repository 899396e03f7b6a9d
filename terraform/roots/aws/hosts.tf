# Different hardware for each node of a zone (at most seven per zone).
resource "aws_placement_group" "node" {
  name     = "${var.name}-nodes"
  strategy = "spread"
}

# User data counts at first boot alone, so a change of it (or of the image) replaces nobody. Put a new machine under a node
# with: terraform apply -replace='aws_instance.node["node-a"]', one after the other.
resource "aws_instance" "node" {
  for_each               = var.nodes
  ami                    = var.ami
  instance_type          = each.value.instance_type
  subnet_id              = aws_subnet.private[each.value.zone].id
  private_ip             = local.node_ips[each.key]
  vpc_security_group_ids = [aws_security_group.node.id]
  iam_instance_profile   = aws_iam_instance_profile.this["storage-node"].name
  placement_group        = aws_placement_group.node.id
  key_name               = var.key_name
  user_data              = module.cluster.nodes[each.key].user_data

  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
  }
  root_block_device {
    volume_type = "gp3"
    volume_size = 30
    encrypted   = true
  }
  lifecycle {
    ignore_changes = [ami, user_data]
  }
  tags = { Name = "${var.name}-${each.key}" }

  depends_on = [aws_iam_role_policy.objects, aws_iam_role_policy.binary, aws_vpc_endpoint.s3, aws_route_table_association.private]
}

resource "aws_instance" "gateway" {
  for_each               = var.gateways
  ami                    = var.ami
  instance_type          = each.value.instance_type
  subnet_id              = aws_subnet.private[each.value.zone].id
  private_ip             = local.gateway_ips[each.key]
  vpc_security_group_ids = [aws_security_group.gateway.id]
  iam_instance_profile   = aws_iam_instance_profile.this["gateway"].name
  key_name               = var.key_name
  user_data              = module.cluster.gateways[each.key].user_data

  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
  }
  root_block_device {
    volume_type = "gp3"
    volume_size = 10
    encrypted   = true
  }
  lifecycle {
    ignore_changes = [ami, user_data]
  }
  tags = { Name = "${var.name}-${each.key}" }

  depends_on = [aws_iam_role_policy.objects, aws_iam_role_policy.binary, aws_vpc_endpoint.s3, aws_route_table_association.private]
}

# MinIO has a public address to download its programs; its security group lets nobody in but members.
resource "aws_instance" "minio" {
  count                       = local.minio ? 1 : 0
  ami                         = var.ami
  instance_type               = var.minio.instance_type
  subnet_id                   = aws_subnet.public[var.zones[0]].id
  private_ip                  = local.minio_ip
  associate_public_ip_address = true
  vpc_security_group_ids      = [aws_security_group.minio[0].id]
  iam_instance_profile        = aws_iam_instance_profile.minio[0].name
  key_name                    = var.key_name
  user_data                   = module.minio[0].user_data

  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
  }
  root_block_device {
    volume_type = "gp3"
    volume_size = 10
    encrypted   = true
  }
  lifecycle {
    ignore_changes = [ami, user_data]
  }
  tags = { Name = "${var.name}-minio" }

  depends_on = [aws_iam_role_policy.minio, aws_route_table_association.public]
}

resource "aws_ebs_volume" "minio" {
  count             = local.minio ? 1 : 0
  availability_zone = var.zones[0]
  type              = "gp3"
  size              = var.minio.disk_gib
  encrypted         = true
  tags              = { Name = "${var.name}-minio" }
}

resource "aws_volume_attachment" "minio" {
  count       = local.minio ? 1 : 0
  device_name = "/dev/sdf"
  volume_id   = aws_ebs_volume.minio[0].id
  instance_id = aws_instance.minio[0].id
}
