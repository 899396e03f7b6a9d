output "gateway_urls" {
  description = "Where clients are served."
  value       = [for gateway in module.cluster.gateways : gateway.url]
  # Whoever uses them wants them to serve.
  depends_on = [terraform_data.share]
}

output "state_dir" {
  description = "Where logs and data are, until destroy."
  value       = local.state_dir
}

output "binary" {
  description = "The program that runs."
  value       = local.binary
}

output "summary" {
  description = "The cluster in a few fields."
  value       = module.cluster.summary
}

output "try" {
  description = "A first write and read."
  value       = "export CARTWHEEL_GATEWAY=${values(module.cluster.gateways)[0].url}; ${local.binary} put carts alice --value milk; ${local.binary} get carts alice"
}
