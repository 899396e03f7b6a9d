# Asks a running cluster; fails if it is not as it should be.

terraform {
  required_version = ">= 1.9.0"
}

variable "step" {
  description = "A name for this look: each name looks once."
  type        = string
}

variable "binary" {
  type = string
}

variable "gateway_urls" {
  type = list(string)
}

variable "members" {
  description = "The members that there should be, with their weights."
  type        = map(number)
}

variable "write" {
  description = "Write 40 keys first (under the step's name)?"
  type        = bool
  default     = false
}

variable "read" {
  description = "Steps whose keys must be there, each through each gateway."
  type        = list(string)
  default     = []
}

resource "terraform_data" "probe" {
  triggers_replace = var.step

  provisioner "local-exec" {
    command = "${path.module}/probe.sh"
    environment = {
      STEP     = var.step
      BINARY   = var.binary
      GATEWAYS = join(" ", var.gateway_urls)
      MEMBERS  = jsonencode(var.members)
      WRITE    = var.write
      READ     = join(" ", var.read)
    }
  }
}
