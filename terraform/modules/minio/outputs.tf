output "user_data" {
  description = "cloud-init user data."
  value = templatefile("${path.module}/templates/user-data.yaml.tftpl", {
    policies = var.policies
    setup    = local.setup
    unit     = local.unit
  })
}

output "setup_script" {
  description = "What the host runs at first boot; can be run again."
  value       = local.setup
}

output "unit" {
  description = "The systemd unit."
  value       = local.unit
}
