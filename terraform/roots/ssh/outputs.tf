output "gateway_urls" {
  description = "Where clients are served."
  value       = [for gateway in module.cluster.gateways : gateway.url]
}

output "summary" {
  value = module.cluster.summary
}

output "commands" {
  description = "What one may want to run for a node."
  value       = { for id, node in module.cluster.nodes : id => node.commands }
}
