# Keeps the ring in step with the machines, from where Terraform runs: a node that goes hands over first; another weight or
# zone is told. Needs no provider. The machines must come before this module (depends_on), so that they go after it.

locals {
  script = "${path.module}/scripts/ring.sh"
}

resource "terraform_data" "member" {
  for_each = var.nodes
  input    = { script = local.script, id = each.key, gateway = var.gateway_url, binary = var.binary, marks = abspath(var.marks) }

  provisioner "local-exec" {
    when        = destroy
    command     = "${self.input.script} leave ${self.input.id}"
    environment = { BINARY = self.input.binary, CARTWHEEL_GATEWAY = self.input.gateway, MARKS = self.input.marks }
  }
}

resource "terraform_data" "share" {
  for_each         = var.nodes
  triggers_replace = [terraform_data.member[each.key].id, each.value.weight, each.value.zone]

  provisioner "local-exec" {
    command     = "${local.script} share ${each.key} ${each.value.weight} ${each.value.zone}"
    environment = { BINARY = var.binary, CARTWHEEL_GATEWAY = var.gateway_url, MARKS = abspath(var.marks) }
  }
}

# Is there when all the rest is, and goes before it: then nobody is left to hand over to.
resource "terraform_data" "up" {
  depends_on = [terraform_data.member, terraform_data.share]
  input      = { script = local.script, marks = abspath(var.marks) }

  provisioner "local-exec" {
    command     = "${self.input.script} up"
    environment = { MARKS = self.input.marks }
  }
  provisioner "local-exec" {
    when        = destroy
    command     = "${self.input.script} down"
    environment = { MARKS = self.input.marks }
  }
}
