# Renders what each host of a cluster needs. Nothing here needs a provider, and what is rendered for one host says
# nothing of the others: members find each other through the bucket. So a node more changes no other node.

locals {
  bucket_url = "s3://${var.bucket}/${var.prefix}"
  loopback   = ["127.0.0.1", "::1", "localhost"]

  objects_arn = "arn:aws:s3:::${var.bucket}/${var.prefix == "" ? "" : "${var.prefix}/"}"
  list_statement = merge(
    {
      Sid      = "List"
      Effect   = "Allow"
      Action   = ["s3:ListBucket"]
      Resource = ["arn:aws:s3:::${var.bucket}"]
    },
    var.prefix == "" ? {} : { Condition = { StringLike = { "s3:prefix" = ["${var.prefix}/*"] } } },
  )

  # Where units read secrets from; null: there are none to read.
  secrets_file = var.secrets.env_file != null ? var.secrets.env_file : (
    var.secrets.fetch_command != null ? "/run/cartwheel/secrets-KIND.env" : null
  )
  secrets_script = templatefile("${path.module}/templates/secrets.sh.tftpl", {
    env_file      = var.secrets.env_file
    fetch_command = var.secrets.fetch_command
  })

  shared_environment = merge(
    {
      CARTWHEEL_BUCKET     = local.bucket_url
      CARTWHEEL_LOG_FORMAT = var.log_format
      AWS_REGION           = var.region
    },
    var.endpoint == null ? {} : { AWS_ENDPOINT_URL_S3 = var.endpoint },
  )

  # A storage node's weight and zone count only when it joins; later `cartwheel node weight|zone` changes them. They are
  # kept apart so that a change of them restarts nothing.
  node_settings = {
    for id, node in var.nodes : id => merge(
      local.shared_environment,
      {
        CARTWHEEL_ID           = id
        CARTWHEEL_LISTEN       = join(":", [strcontains(node.listen_address, ":") ? "[${node.listen_address}]" : node.listen_address, node.port])
        CARTWHEEL_ADVERTISE    = join(":", [strcontains(node.address, ":") ? "[${node.address}]" : node.address, node.port])
        CARTWHEEL_DATA_DIR     = local.data_dir[id]
        CARTWHEEL_MEMORY       = node.memory
        CARTWHEEL_REPLICAS     = tostring(var.replicas)
        CARTWHEEL_EXPECT_NODES = tostring(var.expect_nodes)
      },
      # Calls between members carry a token in any case. Without a secret of yours it is made from the one in the
      # bucket, and the program wants to be told that this will do.
      contains(local.loopback, node.listen_address) || var.secrets.cluster_secret ? {} : { CARTWHEEL_INSECURE = "true" },
      node.environment,
    )
  }
  node_share = {
    for id, node in var.nodes : id => {
      CARTWHEEL_WEIGHT = tostring(node.weight)
      CARTWHEEL_ZONE   = node.zone
    }
  }
  data_dir = { for id, node in var.nodes : id => coalesce(node.data_dir, "/var/lib/cartwheel/${id}") }

  gateway_settings = {
    for id, gateway in var.gateways : id => merge(
      local.shared_environment,
      {
        CARTWHEEL_LISTEN = join(":", [strcontains(gateway.listen_address, ":") ? "[${gateway.listen_address}]" : gateway.listen_address, gateway.port])
      },
      # Clients need no credentials, so a gateway always wants to be told. The firewall is what protects it.
      contains(local.loopback, gateway.listen_address) ? {} : { CARTWHEEL_INSECURE = "true" },
      gateway.environment,
    )
  }
  gateway_urls = {
    for id, g in var.gateways : id => "http://${strcontains(g.address, ":") ? "[${g.address}]" : g.address}:${g.port}"
  }

  # One shape for both kinds of host.
  processes = merge(
    {
      for id, node in var.nodes : "node/${id}" => {
        kind        = "storage-node"
        label       = "storage node ${id}"
        unit_name   = "cartwheel-storage-${id}.service"
        env_path    = "/etc/cartwheel/storage-${id}.env"
        environment = merge(local.node_settings[id], local.node_share[id])
        settings    = local.node_settings[id]
        data_dir    = local.data_dir[id]
        # Bad usage stays bad; and a node whose name another process has taken over would take it back, and so on
        # without end.
        final_status = "2 5"
        port         = node.port
      }
    },
    {
      for id, gateway in var.gateways : "gateway/${id}" => {
        kind         = "gateway"
        label        = "gateway ${id}"
        unit_name    = "cartwheel-gateway-${id}.service"
        env_path     = "/etc/cartwheel/gateway-${id}.env"
        environment  = local.gateway_settings[id]
        settings     = local.gateway_settings[id]
        data_dir     = null
        final_status = "2"
        port         = gateway.port
      }
    },
  )

  units = {
    for key, p in local.processes : key => templatefile("${path.module}/templates/unit.tftpl", {
      kind         = p.kind
      label        = p.label
      env_path     = p.env_path
      secrets_file = local.secrets_file == null ? null : replace(local.secrets_file, "KIND", p.kind)
      binary       = var.binary.path
      version      = var.binary.version
      data_dir     = p.data_dir
      final_status = p.final_status
    })
  }
  env_files = {
    for key, p in local.processes : key => templatefile("${path.module}/templates/env.tftpl", {
      label       = p.label
      environment = p.environment
    })
  }
  install_scripts = {
    for key, p in local.processes : key => templatefile("${path.module}/templates/install.sh.tftpl", {
      binary    = var.binary
      region    = var.region
      data_dir  = p.data_dir
      unit_name = p.unit_name
    })
  }
  user_data = {
    for key, p in local.processes : key => templatefile("${path.module}/templates/user-data.yaml.tftpl", {
      label          = p.label
      env_path       = p.env_path
      env_file       = local.env_files[key]
      unit_path      = "/etc/systemd/system/${p.unit_name}"
      unit           = local.units[key]
      secrets_script = local.secrets_file == null ? null : local.secrets_script
      install_script = local.install_scripts[key]
    })
  }
  rendered = {
    for key, p in local.processes : key => {
      kind           = p.kind
      port           = p.port
      environment    = p.environment
      env_path       = p.env_path
      env_file       = local.env_files[key]
      unit_name      = p.unit_name
      unit           = local.units[key]
      user_data      = local.user_data[key]
      install_script = local.install_scripts[key]
      secrets_script = local.secrets_file == null ? null : local.secrets_script
      data_dir       = p.data_dir
      # Changes when the process has to be started again.
      restart_key = sha256(jsonencode([p.settings, local.units[key], var.binary]))
    }
  }
}

check "zones" {
  assert {
    condition     = length(distinct([for node in values(var.nodes) : node.zone])) >= var.replicas
    error_message = "The nodes are in ${length(distinct([for node in values(var.nodes) : node.zone]))} zones (${join(", ", distinct([for node in values(var.nodes) : node.zone]))}), fewer than replicas (${var.replicas}): some keys will have two replicas in one zone."
  }
}

check "overlap" {
  assert {
    condition = alltrue([
      for s in values(var.namespaces) :
      coalesce(s.r, floor(var.replicas / 2) + 1) + coalesce(s.w, floor(var.replicas / 2) + 1) > var.replicas
    ])
    error_message = "r + w is not more than replicas (${var.replicas}) in the namespaces ${join(", ", [for name, s in var.namespaces : name if coalesce(s.r, floor(var.replicas / 2) + 1) + coalesce(s.w, floor(var.replicas / 2) + 1) <= var.replicas])}: a read there may miss the latest write."
  }
}
