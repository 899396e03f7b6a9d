# A cluster on hosts that one has already, over ssh. The hosts need systemd, and curl for nothing but your own looks.
#
#   member <- process            (a node: its place in the ring; what runs)
#      ^------- gateway <- gateway_process <- share, namespace
#      ^------------------------------------- up
#
# As in the local root: a member's destruction leaves the ring; a process is started again in place. `up` goes first when
# all is destroyed, and leaves a mark by which members know that there is nobody to hand over to.

locals {
  binary_file = startswith(var.binary_file, "/") ? var.binary_file : abspath("${path.module}/${var.binary_file}")
  binary_hash = filesha256(local.binary_file)
  marks       = abspath("${path.module}/.cartwheel-ssh")
  sudo        = var.ssh.sudo ? "sudo " : ""
  gateways    = join(" ", [for gateway in module.cluster.gateways : gateway.url])

  # A connection without the key itself: this comes into the state.
  connections = {
    for key, host in merge({ for id, n in var.nodes : "node/${id}" => n }, { for id, g in var.gateways : "gateway/${id}" => g }) : key => {
      host             = host.host
      port             = host.ssh_port
      host_key         = host.host_key
      user             = var.ssh.user
      private_key_file = var.ssh.private_key_file
      bastion_host     = var.ssh.bastion_host
      bastion_user     = var.ssh.bastion_user
      timeout          = var.ssh.timeout
    }
  }
}

module "cluster" {
  source = "../../modules/cluster"

  bucket       = var.bucket
  prefix       = var.prefix
  endpoint     = var.endpoint
  region       = var.region
  replicas     = var.replicas
  expect_nodes = var.expect_nodes
  namespaces   = var.namespaces
  secrets      = var.secrets
  binary       = { version = substr(local.binary_hash, 0, 12) }
  nodes = {
    for id, node in var.nodes : id => {
      address        = coalesce(node.address, node.host)
      listen_address = node.listen
      port           = node.port
      zone           = node.zone
      weight         = node.weight
      memory         = node.memory
      environment    = node.environment
    }
  }
  gateways = {
    for id, gateway in var.gateways : id => {
      address        = coalesce(gateway.address, gateway.host)
      listen_address = gateway.listen
      port           = gateway.port
      environment    = gateway.environment
    }
  }
}

resource "terraform_data" "member" {
  for_each = var.nodes
  input = {
    id         = each.key
    connection = local.connections["node/${each.key}"]
    sudo       = local.sudo
    unit       = module.cluster.nodes[each.key].unit_name
    gateways   = local.gateways
    teardown   = "${local.marks}/teardown"
  }

  connection {
    host         = self.input.connection.host
    port         = self.input.connection.port
    host_key     = self.input.connection.host_key
    user         = self.input.connection.user
    private_key  = self.input.connection.private_key_file == null ? null : file(self.input.connection.private_key_file)
    agent        = self.input.connection.private_key_file == null
    bastion_host = self.input.connection.bastion_host
    bastion_user = self.input.connection.bastion_user
    timeout      = self.input.connection.timeout
  }
  provisioner "remote-exec" {
    when = destroy
    inline = [
      fileexists(self.input.teardown) ? "true" : "${self.input.sudo}/usr/local/lib/cartwheel/host leave ${self.input.id} ${self.input.unit} ${self.input.gateways}",
      "${self.input.sudo}/usr/local/lib/cartwheel/host remove storage-${self.input.id} ${self.input.unit} /var/lib/cartwheel/${self.input.id}",
    ]
  }
}

resource "terraform_data" "process" {
  for_each   = var.nodes
  depends_on = [terraform_data.member]
  triggers_replace = [
    terraform_data.member[each.key].id, module.cluster.nodes[each.key].restart_key, local.binary_hash, each.value.host,
  ]

  connection {
    host         = local.connections["node/${each.key}"].host
    port         = local.connections["node/${each.key}"].port
    host_key     = local.connections["node/${each.key}"].host_key
    user         = var.ssh.user
    private_key  = var.ssh.private_key_file == null ? null : file(var.ssh.private_key_file)
    agent        = var.ssh.private_key_file == null
    bastion_host = var.ssh.bastion_host
    bastion_user = var.ssh.bastion_user
    timeout      = var.ssh.timeout
  }
  # One host at a time: who fails keeps the turn, and the rest is left as it is.
  provisioner "local-exec" {
    command = "exec ${path.module}/scripts/turn.sh take ${local.marks} storage-${each.key}"
  }
  provisioner "remote-exec" {
    inline = ["mkdir -p .cartwheel-stage/storage-${each.key}"]
  }
  provisioner "file" {
    source      = local.binary_file
    destination = ".cartwheel-stage/storage-${each.key}/cartwheel"
  }
  provisioner "file" {
    source      = "${path.module}/files/host.sh"
    destination = ".cartwheel-stage/storage-${each.key}/host"
  }
  provisioner "file" {
    content     = module.cluster.nodes[each.key].env_file
    destination = ".cartwheel-stage/storage-${each.key}/env"
  }
  provisioner "file" {
    content     = module.cluster.nodes[each.key].unit
    destination = ".cartwheel-stage/storage-${each.key}/unit"
  }
  provisioner "file" {
    content     = module.cluster.nodes[each.key].install_script
    destination = ".cartwheel-stage/storage-${each.key}/install"
  }
  provisioner "file" {
    content     = coalesce(module.cluster.nodes[each.key].secrets_script, "#!/bin/sh\n")
    destination = ".cartwheel-stage/storage-${each.key}/secrets"
  }
  provisioner "remote-exec" {
    inline = [
      "${local.sudo}sh .cartwheel-stage/storage-${each.key}/host install storage-${each.key} ${module.cluster.nodes[each.key].unit_name} ${each.key} ${local.gateways}",
    ]
  }
  provisioner "local-exec" {
    command = "exec ${path.module}/scripts/turn.sh give ${local.marks} storage-${each.key}"
  }
}

resource "terraform_data" "gateway" {
  for_each   = var.gateways
  depends_on = [terraform_data.member, terraform_data.process]
  input = {
    id         = each.key
    connection = local.connections["gateway/${each.key}"]
    sudo       = local.sudo
    unit       = module.cluster.gateways[each.key].unit_name
  }

  connection {
    host         = self.input.connection.host
    port         = self.input.connection.port
    host_key     = self.input.connection.host_key
    user         = self.input.connection.user
    private_key  = self.input.connection.private_key_file == null ? null : file(self.input.connection.private_key_file)
    agent        = self.input.connection.private_key_file == null
    bastion_host = self.input.connection.bastion_host
    bastion_user = self.input.connection.bastion_user
    timeout      = self.input.connection.timeout
  }
  provisioner "remote-exec" {
    when   = destroy
    inline = ["${self.input.sudo}/usr/local/lib/cartwheel/host remove gateway-${self.input.id} ${self.input.unit}"]
  }
}

resource "terraform_data" "gateway_process" {
  for_each   = var.gateways
  depends_on = [terraform_data.gateway]
  triggers_replace = [
    terraform_data.gateway[each.key].id, module.cluster.gateways[each.key].restart_key, local.binary_hash, each.value.host,
  ]

  connection {
    host         = local.connections["gateway/${each.key}"].host
    port         = local.connections["gateway/${each.key}"].port
    host_key     = local.connections["gateway/${each.key}"].host_key
    user         = var.ssh.user
    private_key  = var.ssh.private_key_file == null ? null : file(var.ssh.private_key_file)
    agent        = var.ssh.private_key_file == null
    bastion_host = var.ssh.bastion_host
    bastion_user = var.ssh.bastion_user
    timeout      = var.ssh.timeout
  }
  provisioner "local-exec" {
    command = "exec ${path.module}/scripts/turn.sh take ${local.marks} gateway-${each.key}"
  }
  provisioner "remote-exec" {
    inline = ["mkdir -p .cartwheel-stage/gateway-${each.key}"]
  }
  provisioner "file" {
    source      = local.binary_file
    destination = ".cartwheel-stage/gateway-${each.key}/cartwheel"
  }
  provisioner "file" {
    source      = "${path.module}/files/host.sh"
    destination = ".cartwheel-stage/gateway-${each.key}/host"
  }
  provisioner "file" {
    content     = module.cluster.gateways[each.key].env_file
    destination = ".cartwheel-stage/gateway-${each.key}/env"
  }
  provisioner "file" {
    content     = module.cluster.gateways[each.key].unit
    destination = ".cartwheel-stage/gateway-${each.key}/unit"
  }
  provisioner "file" {
    content     = module.cluster.gateways[each.key].install_script
    destination = ".cartwheel-stage/gateway-${each.key}/install"
  }
  provisioner "file" {
    content     = coalesce(module.cluster.gateways[each.key].secrets_script, "#!/bin/sh\n")
    destination = ".cartwheel-stage/gateway-${each.key}/secrets"
  }
  provisioner "remote-exec" {
    inline = [
      "${local.sudo}sh .cartwheel-stage/gateway-${each.key}/host install gateway-${each.key} ${module.cluster.gateways[each.key].unit_name} - ${module.cluster.gateways[each.key].url}",
    ]
  }
  provisioner "local-exec" {
    command = "exec ${path.module}/scripts/turn.sh give ${local.marks} gateway-${each.key}"
  }
}

# The ring knows a node's weight and zone from when it joined; this tells it of others, and waits until the node counts.
resource "terraform_data" "share" {
  for_each         = var.nodes
  depends_on       = [terraform_data.gateway_process]
  triggers_replace = [terraform_data.process[each.key].id, each.value.weight, each.value.zone]

  connection {
    host         = local.connections["node/${each.key}"].host
    port         = local.connections["node/${each.key}"].port
    host_key     = local.connections["node/${each.key}"].host_key
    user         = var.ssh.user
    private_key  = var.ssh.private_key_file == null ? null : file(var.ssh.private_key_file)
    agent        = var.ssh.private_key_file == null
    bastion_host = var.ssh.bastion_host
    bastion_user = var.ssh.bastion_user
    timeout      = var.ssh.timeout
  }
  provisioner "remote-exec" {
    inline = ["${local.sudo}/usr/local/lib/cartwheel/host share ${each.key} ${each.value.weight} ${each.value.zone} ${local.gateways}"]
  }
}

resource "terraform_data" "namespace" {
  for_each         = module.cluster.namespace_commands
  depends_on       = [terraform_data.share]
  triggers_replace = each.value

  connection {
    host         = values(local.connections)[0].host
    port         = values(local.connections)[0].port
    host_key     = values(local.connections)[0].host_key
    user         = var.ssh.user
    private_key  = var.ssh.private_key_file == null ? null : file(var.ssh.private_key_file)
    agent        = var.ssh.private_key_file == null
    bastion_host = var.ssh.bastion_host
    bastion_user = var.ssh.bastion_user
    timeout      = var.ssh.timeout
  }
  provisioner "remote-exec" {
    inline = ["/usr/local/bin/${each.value} --gateway ${values(module.cluster.gateways)[0].url}"]
  }
}

# Is there when all the rest is, and goes before it.
resource "terraform_data" "up" {
  depends_on = [terraform_data.member, terraform_data.share, terraform_data.namespace]
  input      = { marks = local.marks }

  provisioner "local-exec" {
    command = "rm -f ${self.input.marks}/teardown"
  }
  provisioner "local-exec" {
    when    = destroy
    command = "mkdir -p ${self.input.marks} && touch ${self.input.marks}/teardown"
  }
}
