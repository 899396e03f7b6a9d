# What this root refuses by itself; the rest is modules/cluster's.

run "twenty_seven_nodes" {
  command = plan
  variables {
    node_count = 27
  }
  expect_failures = [var.node_count]
}

run "no_gateway" {
  command = plan
  variables {
    gateway_count = 0
  }
  expect_failures = [var.gateway_count]
}

run "state_dir_is_the_root" {
  command = plan
  variables {
    state_dir = "/"
  }
  expect_failures = [var.state_dir]
}

run "s3_on_a_nodes_port" {
  command = plan
  variables {
    node_base_port = 18101
    s3_port        = 18102
  }
  expect_failures = [var.s3_port]
}
