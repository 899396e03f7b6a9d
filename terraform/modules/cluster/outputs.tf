output "nodes" {
  description = "What each storage node's host needs: environment, env_file, env_path, unit, unit_name, user_data, install_script, secrets_script, restart_key, commands."
  value = {
    for id, node in var.nodes : id => merge(local.rendered["node/${id}"], {
      address = node.address
      zone    = node.zone
      weight  = node.weight
      commands = {
        plan_leave = "cartwheel plan leave ${id}"
        leave      = "cartwheel node leave ${id} --yes --wait"
        forget     = "cartwheel node forget ${id} --yes --wait"
        replace    = "cartwheel node replace ${id}"
        weight     = "cartwheel node weight ${id} ${node.weight} --yes --wait"
        zone       = "cartwheel node zone ${id} ${node.zone} --yes --wait"
        logs       = "journalctl --unit ${local.rendered["node/${id}"].unit_name}"
      }
    })
  }
}

output "gateways" {
  description = "What each gateway's host needs, as for nodes; url: where it serves, ready: what a load balancer asks."
  value = {
    for id, gateway in var.gateways : id => merge(local.rendered["gateway/${id}"], {
      address = gateway.address
      url     = local.gateway_urls[id]
      ready   = "${local.gateway_urls[id]}/readyz"
    })
  }
}

output "namespace_commands" {
  description = "The command that sets each namespace's settings."
  value = {
    for name, s in var.namespaces : name => join(" ", concat(
      ["cartwheel", "namespace", "set", name],
      s.r == null ? [] : ["--r", tostring(s.r)],
      s.w == null ? [] : ["--w", tostring(s.w)],
      s.durability == null ? [] : ["--durability", s.durability],
      s.ttl == null ? [] : ["--ttl", s.ttl],
      s.max_siblings == null ? [] : ["--max-siblings", tostring(s.max_siblings)],
      s.on_blind_write == null ? [] : ["--on-blind-write", s.on_blind_write],
    )) if anytrue([for value in values(s) : value != null])
  }
}

output "summary" {
  description = "The cluster in a few fields."
  value = {
    name         = var.name
    bucket_url   = local.bucket_url
    endpoint     = var.endpoint
    region       = var.region
    version      = var.binary.version
    nodes        = { for id, node in var.nodes : id => "${node.address}:${node.port} zone ${node.zone} weight ${node.weight}" }
    zones        = { for zone in distinct([for node in values(var.nodes) : node.zone]) : zone => [for id, node in var.nodes : id if node.zone == zone] }
    gateway_urls = local.gateway_urls
    replicas     = var.replicas
    majority     = floor(var.replicas / 2) + 1
    secrets      = var.secrets.env_file != null ? "file on the host: ${var.secrets.env_file}" : (var.secrets.fetch_command != null ? "fetched by the host" : "the machine's role, and the bucket")
  }
}

output "bucket_policies" {
  description = "What each kind may do with the bucket, as IAM policy documents (JSON); MinIO takes them too."
  value = {
    storage-node = jsonencode({
      Version = "2012-10-17"
      Statement = [
        local.list_statement,
        {
          Sid      = "Objects"
          Effect   = "Allow"
          Action   = ["s3:GetObject", "s3:PutObject", "s3:DeleteObject"]
          Resource = ["${local.objects_arn}*"]
        },
      ]
    })
    # Reads all, for when no node is in reach. Writes hints (the homes' inboxes), ring documents, settings of namespaces, and
    # the cluster's secret if it is the first to look for it.
    gateway = jsonencode({
      Version = "2012-10-17"
      Statement = [
        local.list_statement,
        {
          Sid      = "Read"
          Effect   = "Allow"
          Action   = ["s3:GetObject"]
          Resource = ["${local.objects_arn}*"]
        },
        {
          Sid      = "Write"
          Effect   = "Allow"
          Action   = ["s3:PutObject"]
          Resource = [for part in ["cluster/secret", "hints/*", "namespaces/*", "ring/*"] : "${local.objects_arn}${part}"]
        },
        {
          Sid      = "DeleteOldSettings"
          Effect   = "Allow"
          Action   = ["s3:DeleteObject"]
          Resource = ["${local.objects_arn}namespaces/*"]
        },
      ]
    })
  }
}
