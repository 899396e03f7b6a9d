variable "ssh" {
  description = <<-EOT
    How hosts are reached. private_key_file: a file of yours (null: the agent); its content never comes into the state.
    sudo: the user is not root. A host key can be given per host (host_key).
  EOT
  type = object({
    user             = optional(string, "root")
    private_key_file = optional(string)
    sudo             = optional(bool, false)
    bastion_host     = optional(string)
    bastion_user     = optional(string)
    timeout          = optional(string, "2m")
  })
  default = {}
}

variable "nodes" {
  description = "Storage nodes by id. host: where ssh goes; address: where members reach it (host, if not given). Several may share a host if their ports differ."
  type = map(object({
    host        = string
    ssh_port    = optional(number, 22)
    host_key    = optional(string)
    address     = optional(string)
    listen      = optional(string, "0.0.0.0")
    port        = optional(number, 7101)
    zone        = optional(string, "default")
    weight      = optional(number, 1)
    memory      = optional(string, "1GiB")
    environment = optional(map(string), {})
  }))
}

variable "gateways" {
  description = "Gateways by name. Fields as for nodes."
  type = map(object({
    host        = string
    ssh_port    = optional(number, 22)
    host_key    = optional(string)
    address     = optional(string)
    listen      = optional(string, "0.0.0.0")
    port        = optional(number, 8080)
    environment = optional(map(string), {})
  }))
}

variable "binary_file" {
  description = "The program on this machine, for the hosts' operating system. A relative path is relative to this folder."
  type        = string
  default     = "../../../target/release/cartwheel"

  validation {
    condition     = fileexists(startswith(var.binary_file, "/") ? var.binary_file : "${path.module}/${var.binary_file}")
    error_message = "binary_file: there is no ${var.binary_file}; build it with 'cargo build --release', or give another path."
  }
}

variable "bucket" {
  type = string
}

variable "prefix" {
  type    = string
  default = ""
}

variable "endpoint" {
  type    = string
  default = null
}

variable "region" {
  type    = string
  default = "us-east-1"
}

variable "replicas" {
  type    = number
  default = 3
}

variable "expect_nodes" {
  type    = number
  default = 30
}

variable "namespaces" {
  type = map(object({
    r              = optional(number)
    w              = optional(number)
    durability     = optional(string)
    ttl            = optional(string)
    max_siblings   = optional(number)
    on_blind_write = optional(string)
  }))
  default = {}
}

variable "secrets" {
  description = "Where hosts find their secrets, as in modules/cluster. Put the file there yourself, readable by root alone."
  type = object({
    env_file       = optional(string)
    fetch_command  = optional(string)
    cluster_secret = optional(bool, false)
  })
  default = { env_file = "/etc/cartwheel/secrets.env" }
}
