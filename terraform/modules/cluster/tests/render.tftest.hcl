# What is rendered, and what it depends on.

variables {
  bucket   = "carts"
  prefix   = "prod"
  endpoint = "http://10.0.2.1:9000"
  nodes = {
    node-a = { address = "10.0.0.1", zone = "z1" }
    node-b = { address = "10.0.0.2", zone = "z2", weight = 2, memory = "4GiB" }
    node-c = { address = "10.0.0.3", zone = "z3", environment = { CARTWHEEL_FLUSH_INTERVAL = "5s" } }
  }
  gateways = {
    one = { address = "10.0.1.1" }
    two = { address = "fd00::2", listen_address = "::" }
  }
  namespaces = { carts = { r = 1, w = 3, ttl = "7d" }, plain = {} }
  secrets    = { env_file = "/etc/cartwheel/secrets.env" }
  binary     = { url = "https://example.org/cartwheel", sha256 = "0000000000000000000000000000000000000000000000000000000000000000", version = "1.2.3" }
}

run "renders" {
  command = apply

  assert {
    condition = jsonencode(output.nodes["node-b"].environment) == jsonencode({
      AWS_ENDPOINT_URL_S3    = "http://10.0.2.1:9000"
      AWS_REGION             = "us-east-1"
      CARTWHEEL_ADVERTISE    = "10.0.0.2:7101"
      CARTWHEEL_BUCKET       = "s3://carts/prod"
      CARTWHEEL_DATA_DIR     = "/var/lib/cartwheel/node-b"
      CARTWHEEL_EXPECT_NODES = "30"
      CARTWHEEL_ID           = "node-b"
      CARTWHEEL_INSECURE     = "true"
      CARTWHEEL_LISTEN       = "0.0.0.0:7101"
      CARTWHEEL_LOG_FORMAT   = "json"
      CARTWHEEL_MEMORY       = "4GiB"
      CARTWHEEL_REPLICAS     = "3"
      CARTWHEEL_WEIGHT       = "2"
      CARTWHEEL_ZONE         = "z2"
    })
    error_message = "node-b's environment is ${jsonencode(output.nodes["node-b"].environment)}"
  }
  assert {
    condition     = strcontains(output.nodes["node-c"].env_file, "CARTWHEEL_FLUSH_INTERVAL=\"5s\"\n")
    error_message = "a node's own environment is missing: ${output.nodes["node-c"].env_file}"
  }
  assert {
    condition     = !strcontains(output.gateways["one"].env_file, "CARTWHEEL_ID") && strcontains(output.gateways["one"].unit, "ExecStart=/usr/local/bin/cartwheel gateway\n")
    error_message = "a gateway has no id and runs the gateway"
  }
  assert {
    condition     = output.gateways["two"].url == "http://[fd00::2]:8080" && output.gateways["two"].environment["CARTWHEEL_LISTEN"] == "[::]:8080"
    error_message = "IPv6 addresses need brackets: ${output.gateways["two"].url}"
  }
  assert {
    condition = alltrue([for line in [
      "ExecStart=/usr/local/bin/cartwheel storage-node",
      "EnvironmentFile=/etc/cartwheel/storage-node-a.env",
      "EnvironmentFile=-/etc/cartwheel/secrets.env",
      "ReadWritePaths=/var/lib/cartwheel/node-a",
      "RestartPreventExitStatus=2 5",
    ] : contains(split("\n", output.nodes["node-a"].unit), line)])
    error_message = "the unit lacks a line: ${output.nodes["node-a"].unit}"
  }
  assert {
    condition     = alltrue([for host in merge(output.nodes, output.gateways) : startswith(host.user_data, "#cloud-config\n")])
    error_message = "user data must start with #cloud-config"
  }
  assert {
    condition = alltrue([for host in merge(output.nodes, output.gateways) : jsonencode({
      for file in yamldecode(host.user_data).write_files : file.path => file.content
      }) == jsonencode({
      (host.env_path)                         = host.env_file
      "/etc/systemd/system/${host.unit_name}" = host.unit
      "/usr/local/lib/cartwheel/secrets"      = host.secrets_script
      "/usr/local/lib/cartwheel/install"      = host.install_script
    })])
    error_message = "user data must hold exactly these four files"
  }
  assert {
    condition     = strcontains(output.nodes["node-a"].install_script, "sha256sum --check")
    error_message = "what is downloaded must be checked"
  }
  assert {
    condition     = output.namespace_commands == { carts = "cartwheel namespace set carts --r 1 --w 3 --ttl 7d" }
    error_message = "namespace commands are ${jsonencode(output.namespace_commands)}"
  }
  assert {
    condition     = output.summary.zones == { z1 = ["node-a"], z2 = ["node-b"], z3 = ["node-c"] } && output.summary.majority == 2
    error_message = "the summary is ${jsonencode(output.summary)}"
  }
}

run "a_cluster_secret_of_ones_own_needs_no_leave" {
  command = apply
  variables {
    secrets = { fetch_command = "aws ssm get-parameter --name /carts/env --with-decryption --query Parameter.Value --output text", cluster_secret = true }
  }
  assert {
    condition     = !contains(keys(output.nodes["node-a"].environment), "CARTWHEEL_INSECURE")
    error_message = "a storage node that has a secret needs no CARTWHEEL_INSECURE"
  }
  assert {
    condition     = strcontains(output.nodes["node-a"].secrets_script, "aws ssm get-parameter --name /carts/env") && strcontains(output.nodes["node-a"].unit, "EnvironmentFile=-/run/cartwheel/secrets-storage-node.env")
    error_message = "the host must fetch the secret, and the unit read it"
  }
}

run "policies" {
  command = apply
  assert {
    condition = jsonencode([for s in jsondecode(output.bucket_policies["gateway"]).Statement : s.Resource if contains(s.Action, "s3:PutObject")]) == jsonencode([[
      "arn:aws:s3:::carts/prod/cluster/secret", "arn:aws:s3:::carts/prod/hints/*", "arn:aws:s3:::carts/prod/namespaces/*", "arn:aws:s3:::carts/prod/ring/*",
    ]])
    error_message = "a gateway may write no more than these: ${output.bucket_policies["gateway"]}"
  }
  assert {
    condition     = alltrue([for policy in values(output.bucket_policies) : alltrue([for s in jsondecode(policy).Statement : !contains(s.Action, "s3:*") && !contains(flatten([s.Resource]), "*")])])
    error_message = "no policy may be for everything"
  }
}

run "without_references_nothing_is_fetched" {
  command = apply
  variables {
    secrets = {}
  }
  assert {
    condition     = output.nodes["node-a"].secrets_script == null && !strcontains(output.nodes["node-a"].user_data, "/cartwheel/secrets")
    error_message = "there is nothing to fetch"
  }
}

run "loopback_needs_no_leave" {
  command = apply
  variables {
    nodes    = { for i in range(3) : "n${i}" => { address = "127.0.0.1", listen_address = "127.0.0.1", port = 7101 + i, zone = "z${i}" } }
    gateways = { one = { address = "127.0.0.1", listen_address = "127.0.0.1" } }
  }
  assert {
    condition     = alltrue([for host in merge(output.nodes, output.gateways) : !contains(keys(host.environment), "CARTWHEEL_INSECURE")])
    error_message = "CARTWHEEL_INSECURE is for hosts that listen beyond loopback"
  }
}

run "a_node_more_changes_no_other" {
  command = apply
  module {
    source = "./tests/fixture"
  }
  assert {
    condition     = alltrue([for id, host in output.before : jsonencode(host) == jsonencode(output.grown[id])])
    error_message = "adding node-d changed ${join(", ", [for id, host in output.before : id if jsonencode(host) != jsonencode(output.grown[id])])}"
  }
  assert {
    condition     = length(setsubtract(keys(output.grown), keys(output.before))) == 1
    error_message = "there must be one host more"
  }
}

run "another_weight_restarts_nothing" {
  command = apply
  module {
    source = "./tests/fixture"
  }
  assert {
    condition     = [for id, host in output.before : id if host.env_file != output.heavier[id].env_file] == ["node-b"]
    error_message = "node-b's environment, and no other's, tells the new weight"
  }
  assert {
    condition     = alltrue([for id, host in output.before : host.restart_key == output.heavier[id].restart_key])
    error_message = "a weight counts only when a node joins: it must restart nothing"
  }
}

run "another_version_restarts_all" {
  command = apply
  module {
    source = "./tests/fixture"
  }
  assert {
    condition     = alltrue([for id, host in output.before : host.restart_key != output.upgraded[id].restart_key])
    error_message = "a new version must be started"
  }
}
