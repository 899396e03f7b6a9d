locals {
  kinds = toset(["storage-node", "gateway"])
  trust = jsonencode({
    Version   = "2012-10-17"
    Statement = [{ Effect = "Allow", Action = "sts:AssumeRole", Principal = { Service = "ec2.amazonaws.com" } }]
  })
  parameter_arns = {
    for kind, name in local.parameters : kind => "arn:aws:ssm:${var.region}:${data.aws_caller_identity.this.account_id}:parameter${name}"
  }
}

resource "aws_iam_role" "this" {
  for_each           = local.kinds
  name               = "${var.name}-${each.key}"
  assume_role_policy = local.trust
}

resource "aws_iam_instance_profile" "this" {
  for_each = local.kinds
  name     = "${var.name}-${each.key}"
  role     = aws_iam_role.this[each.key].name
}

resource "aws_iam_role_policy" "objects" {
  for_each = local.minio ? toset([]) : local.kinds
  name     = "objects"
  role     = aws_iam_role.this[each.key].id
  policy   = module.cluster.bucket_policies[each.key]
}

resource "aws_iam_role_policy" "binary" {
  for_each = local.kinds
  name     = "binary"
  role     = aws_iam_role.this[each.key].id
  policy = jsonencode({
    Version   = "2012-10-17"
    Statement = [{ Effect = "Allow", Action = ["s3:GetObject"], Resource = ["arn:aws:s3:::${var.binary.bucket}/${var.binary.key}"] }]
  })
}

resource "aws_iam_role_policy" "credentials" {
  for_each = local.minio ? local.kinds : toset([])
  name     = "credentials"
  role     = aws_iam_role.this[each.key].id
  policy = jsonencode({
    Version   = "2012-10-17"
    Statement = [{ Effect = "Allow", Action = ["ssm:GetParameter"], Resource = [local.parameter_arns[each.key]] }]
  })
}

resource "aws_iam_role" "minio" {
  count              = local.minio ? 1 : 0
  name               = "${var.name}-minio"
  assume_role_policy = local.trust
}

resource "aws_iam_instance_profile" "minio" {
  count = local.minio ? 1 : 0
  name  = "${var.name}-minio"
  role  = aws_iam_role.minio[0].name
}

resource "aws_iam_role_policy" "minio" {
  count = local.minio ? 1 : 0
  name  = "publish-credentials"
  role  = aws_iam_role.minio[0].id
  policy = jsonencode({
    Version   = "2012-10-17"
    Statement = [{ Effect = "Allow", Action = ["ssm:PutParameter"], Resource = values(local.parameter_arns) }]
  })
}
