# Really starts a cluster on this machine, grows it, changes a weight, puts an empty disk under a node, shrinks it, and
# takes it down, looking at it and at what was written each time. Ports and the program come from TF_VAR_... (check.sh).

variables {
  state_dir = ".cartwheel-test"
}

run "five_nodes_two_gateways" {
  assert {
    condition     = length(output.gateway_urls) == 2 && length(output.summary.nodes) == 5
    error_message = "five nodes and two gateways were asked for: ${jsonencode(output.summary)}"
  }
  assert {
    condition     = fileexists("${output.state_dir}/credentials.env")
    error_message = "there are no credentials in ${output.state_dir}"
  }
  assert {
    condition     = !strcontains(jsonencode([terraform_data.folder, terraform_data.s3, terraform_data.member, terraform_data.process]), "SECRET")
    error_message = "the state must hold no secret"
  }
}

run "five_serve" {
  module {
    source = "./tests/probe"
  }
  variables {
    step         = "five"
    binary       = run.five_nodes_two_gateways.binary
    gateway_urls = run.five_nodes_two_gateways.gateway_urls
    members      = { node-a = 1, node-b = 1, node-c = 1, node-d = 1, node-e = 1 }
    write        = true
    read         = ["five"]
  }
}

run "six_nodes" {
  variables {
    node_count = 6
    weights    = { node-b = 3 }
    namespaces = { probe = { r = 2, w = 2 } }
  }
  assert {
    condition     = length(output.summary.nodes) == 6
    error_message = "six nodes were asked for: ${jsonencode(output.summary)}"
  }
}

run "six_serve" {
  module {
    source = "./tests/probe"
  }
  variables {
    step         = "six"
    binary       = run.six_nodes.binary
    gateway_urls = run.six_nodes.gateway_urls
    members      = { node-a = 1, node-b = 3, node-c = 1, node-d = 1, node-e = 1, node-f = 1 }
    write        = true
    read         = ["five", "six"]
  }
}

run "five_nodes_again_one_of_them_on_an_empty_disk" {
  variables {
    node_count = 5
    weights    = { node-b = 3 }
    machines   = { node-c = 2 }
  }
  assert {
    condition     = length(output.summary.nodes) == 5
    error_message = "five nodes were asked for: ${jsonencode(output.summary)}"
  }
}

run "nothing_was_lost" {
  module {
    source = "./tests/probe"
  }
  variables {
    step         = "again"
    binary       = run.six_nodes.binary
    gateway_urls = run.six_nodes.gateway_urls
    members      = { node-a = 1, node-b = 3, node-c = 1, node-d = 1, node-e = 1 }
    read         = ["five", "six"]
  }
}

# What cloud roots use to keep the ring in step, against this cluster.
run "membership_tells_a_weight" {
  module {
    source = "../../modules/membership"
  }
  variables {
    nodes       = { node-a = { weight = 2, zone = "z1" }, node-e = { weight = 1, zone = "z2" } }
    gateway_url = run.six_nodes.gateway_urls[0]
    binary      = run.six_nodes.binary
    marks       = "${run.six_nodes.state_dir}/marks"
  }
}

run "membership_has_a_node_leave" {
  module {
    source = "../../modules/membership"
  }
  variables {
    nodes       = { node-a = { weight = 2, zone = "z1" } }
    gateway_url = run.six_nodes.gateway_urls[0]
    binary      = run.six_nodes.binary
    marks       = "${run.six_nodes.state_dir}/marks"
  }
}

run "four_serve" {
  module {
    source = "./tests/probe"
  }
  variables {
    step         = "four"
    binary       = run.six_nodes.binary
    gateway_urls = run.six_nodes.gateway_urls
    members      = { node-a = 2, node-b = 3, node-c = 1, node-d = 1 }
    read         = ["five", "six"]
  }
}
