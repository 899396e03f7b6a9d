# Each wrong input is refused, by the rule that is meant for it.

variables {
  bucket = "carts"
  nodes = {
    node-a = { address = "10.0.0.1", zone = "z1" }
    node-b = { address = "10.0.0.2", zone = "z2" }
    node-c = { address = "10.0.0.3", zone = "z3" }
  }
  gateways = { one = { address = "10.0.1.1" } }
}

run "this_is_right" {
  command = plan
}

run "id_in_capitals" {
  command = plan
  variables {
    nodes = {
      node-a = { address = "10.0.0.1", zone = "z1" }
      node-b = { address = "10.0.0.2", zone = "z2" }
      Node-C = { address = "10.0.0.3", zone = "z3" }
    }
  }
  expect_failures = [var.nodes]
}

run "id_too_long" {
  command = plan
  variables {
    nodes = {
      node-a                                      = { address = "10.0.0.1", zone = "z1" }
      node-b                                      = { address = "10.0.0.2", zone = "z2" }
      "nxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx" = { address = "10.0.0.3", zone = "z3" }
    }
  }
  expect_failures = [var.nodes]
}

run "weight_0" {
  command = plan
  variables {
    nodes = {
      node-a = { address = "10.0.0.1", zone = "z1" }
      node-b = { address = "10.0.0.2", zone = "z2" }
      node-c = { address = "10.0.0.3", zone = "z3", weight = 0 }
    }
  }
  expect_failures = [var.nodes]
}

run "weight_1001" {
  command = plan
  variables {
    nodes = {
      node-a = { address = "10.0.0.1", zone = "z1" }
      node-b = { address = "10.0.0.2", zone = "z2" }
      node-c = { address = "10.0.0.3", zone = "z3", weight = 1001 }
    }
  }
  expect_failures = [var.nodes]
}

run "weight_one_and_a_half" {
  command = plan
  variables {
    nodes = {
      node-a = { address = "10.0.0.1", zone = "z1" }
      node-b = { address = "10.0.0.2", zone = "z2" }
      node-c = { address = "10.0.0.3", zone = "z3", weight = 1.5 }
    }
  }
  expect_failures = [var.nodes]
}

run "same_address_twice" {
  command = plan
  variables {
    nodes = {
      node-a = { address = "10.0.0.1", zone = "z1" }
      node-b = { address = "10.0.0.2", zone = "z2" }
      node-c = { address = "10.0.0.2", zone = "z3" }
    }
  }
  expect_failures = [var.nodes]
}

run "address_with_port" {
  command = plan
  variables {
    nodes = {
      node-a = { address = "10.0.0.1", zone = "z1" }
      node-b = { address = "10.0.0.2", zone = "z2" }
      node-c = { address = "10.0.0.3/x", zone = "z3" }
    }
  }
  expect_failures = [var.nodes]
}

run "port_80" {
  command = plan
  variables {
    nodes = {
      node-a = { address = "10.0.0.1", zone = "z1" }
      node-b = { address = "10.0.0.2", zone = "z2" }
      node-c = { address = "10.0.0.3", zone = "z3", port = 80 }
    }
  }
  expect_failures = [var.nodes]
}

run "port_65536" {
  command = plan
  variables {
    nodes = {
      node-a = { address = "10.0.0.1", zone = "z1" }
      node-b = { address = "10.0.0.2", zone = "z2" }
      node-c = { address = "10.0.0.3", zone = "z3", port = 65536 }
    }
  }
  expect_failures = [var.nodes]
}

run "memory_too_small" {
  command = plan
  variables {
    nodes = {
      node-a = { address = "10.0.0.1", zone = "z1" }
      node-b = { address = "10.0.0.2", zone = "z2" }
      node-c = { address = "10.0.0.3", zone = "z3", memory = "32MiB" }
    }
  }
  expect_failures = [var.nodes]
}

run "memory_without_unit" {
  command = plan
  variables {
    nodes = {
      node-a = { address = "10.0.0.1", zone = "z1" }
      node-b = { address = "10.0.0.2", zone = "z2" }
      node-c = { address = "10.0.0.3", zone = "z3", memory = "1024" }
    }
  }
  expect_failures = [var.nodes]
}

run "data_dir_not_absolute" {
  command = plan
  variables {
    nodes = {
      node-a = { address = "10.0.0.1", zone = "z1" }
      node-b = { address = "10.0.0.2", zone = "z2" }
      node-c = { address = "10.0.0.3", zone = "z3", data_dir = "data" }
    }
  }
  expect_failures = [var.nodes]
}

run "secret_in_environment" {
  command = plan
  variables {
    nodes = {
      node-a = { address = "10.0.0.1", zone = "z1" }
      node-b = { address = "10.0.0.2", zone = "z2" }
      node-c = { address = "10.0.0.3", zone = "z3", environment = { AWS_SECRET_ACCESS_KEY = "x" } }
    }
  }
  expect_failures = [var.nodes]
}

run "quote_in_environment" {
  command = plan
  variables {
    nodes = {
      node-a = { address = "10.0.0.1", zone = "z1" }
      node-b = { address = "10.0.0.2", zone = "z2" }
      node-c = { address = "10.0.0.3", zone = "z3", environment = { CARTWHEEL_LOG = "a\"b" } }
    }
  }
  expect_failures = [var.nodes]
}

run "no_gateway" {
  command = plan
  variables {
    gateways = {}
  }
  expect_failures = [var.gateways]
}

run "gateway_at_a_nodes_address" {
  command = plan
  variables {
    gateways = { one = { address = "10.0.0.1", port = 7101 } }
  }
  expect_failures = [var.gateways]
}

run "bucket_is_a_url" {
  command = plan
  variables {
    bucket = "s3://carts"
  }
  expect_failures = [var.bucket]
}

run "bucket_in_capitals" {
  command = plan
  variables {
    bucket = "Carts"
  }
  expect_failures = [var.bucket]
}

run "bucket_too_short" {
  command = plan
  variables {
    bucket = "ab"
  }
  expect_failures = [var.bucket]
}

run "bucket_like_an_ip" {
  command = plan
  variables {
    bucket = "10.0.0.1"
  }
  expect_failures = [var.bucket]
}

run "prefix_with_slash_at_the_end" {
  command = plan
  variables {
    prefix = "prod/"
  }
  expect_failures = [var.prefix]
}

run "endpoint_with_credentials" {
  command = plan
  variables {
    endpoint = "http://me:secret@10.0.0.1:9000"
  }
  expect_failures = [var.endpoint]
}

run "more_replicas_than_nodes" {
  command = plan
  variables {
    replicas = 4
  }
  expect_failures = [var.replicas]
}

run "replicas_8" {
  command = plan
  variables {
    replicas = 8
  }
  expect_failures = [var.replicas]
}

run "expect_nodes_0" {
  command = plan
  variables {
    expect_nodes = 0
  }
  expect_failures = [var.expect_nodes]
}

run "w_above_n" {
  command = plan
  variables {
    namespaces = { carts = { w = 4 } }
  }
  expect_failures = [var.namespaces]
}

run "r_0" {
  command = plan
  variables {
    namespaces = { carts = { r = 0 } }
  }
  expect_failures = [var.namespaces]
}

run "durability_unknown" {
  command = plan
  variables {
    namespaces = { carts = { durability = "tape" } }
  }
  expect_failures = [var.namespaces]
}

run "ttl_without_unit" {
  command = plan
  variables {
    namespaces = { carts = { ttl = "7" } }
  }
  expect_failures = [var.namespaces]
}

run "two_sources_of_secrets" {
  command = plan
  variables {
    secrets = { env_file = "/etc/a", fetch_command = "b" }
  }
  expect_failures = [var.secrets]
}

run "secret_in_the_command" {
  command = plan
  variables {
    secrets = { fetch_command = "echo CARTWHEEL_CLUSTER_SECRET=0123456789abcdef" }
  }
  expect_failures = [var.secrets]
}

run "cluster_secret_from_nowhere" {
  command = plan
  variables {
    secrets = { cluster_secret = true }
  }
  expect_failures = [var.secrets]
}

run "download_without_checksum" {
  command = plan
  variables {
    binary = { url = "https://example.org/cartwheel" }
  }
  expect_failures = [var.binary]
}

run "download_in_clear_text" {
  command = plan
  variables {
    binary = { url = "http://example.org/cartwheel", sha256 = "0000000000000000000000000000000000000000000000000000000000000000" }
  }
  expect_failures = [var.binary]
}

run "two_zones_for_three_replicas" {
  command = plan
  variables {
    nodes = {
      node-a = { address = "10.0.0.1", zone = "z1" }
      node-b = { address = "10.0.0.2", zone = "z2" }
      node-c = { address = "10.0.0.3", zone = "z2" }
    }
  }
  expect_failures = [check.zones]
}

run "quorums_that_do_not_overlap" {
  command = plan
  variables {
    namespaces = { carts = { r = 1, w = 2 } }
  }
  expect_failures = [check.overlap]
}
