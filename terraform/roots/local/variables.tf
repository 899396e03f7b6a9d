variable "binary" {
  description = "The program. A relative path is relative to this folder."
  type        = string
  default     = "../../../target/release/cartwheel"
}

variable "state_dir" {
  description = "Where everything lies: objects, logs, data, pids. Deleted by destroy. A relative path is relative to this folder."
  type        = string
  default     = ".cartwheel-local"

  validation {
    condition     = can(regex("^[A-Za-z0-9._/-]+$", var.state_dir)) && !contains(["/", ".", ".."], var.state_dir)
    error_message = "state_dir is '${var.state_dir}'; it must be a path of letters, digits and ._/-, of a folder that is there for nothing else."
  }
}

variable "node_count" {
  description = "How many storage nodes there are: node-a, node-b and so on, in three zones. Or give nodes."
  type        = number
  default     = 5

  validation {
    condition     = var.node_count >= 1 && var.node_count <= 26 && floor(var.node_count) == var.node_count
    error_message = "node_count is ${var.node_count}; it must be a whole number from 1 to 26."
  }
}

variable "nodes" {
  description = "Storage nodes by id, in place of node_count. machine: another number puts an empty disk under the node, as another machine would."
  type = map(object({
    port    = number
    zone    = optional(string, "default")
    weight  = optional(number, 1)
    memory  = optional(string, "128MiB")
    machine = optional(number, 1)
  }))
  default = null
}

variable "weights" {
  description = "Weights of nodes other than 1, by id (with node_count)."
  type        = map(number)
  default     = {}
}

variable "machines" {
  description = "Machines other than 1, by id (with node_count)."
  type        = map(number)
  default     = {}
}

variable "gateway_count" {
  description = "Gateways: gateway-1, gateway-2 and so on."
  type        = number
  default     = 2

  validation {
    condition     = var.gateway_count >= 1 && var.gateway_count <= 16 && floor(var.gateway_count) == var.gateway_count
    error_message = "gateway_count is ${var.gateway_count}; it must be a whole number from 1 to 16."
  }
}

variable "node_base_port" {
  description = "Port of the first storage node (with node_count); each further one is one higher."
  type        = number
  default     = 7101
}

variable "gateway_base_port" {
  description = "Port of the first gateway; each further one is one higher."
  type        = number
  default     = 8080
}

variable "s3_port" {
  description = "Port of the S3 server."
  type        = number
  default     = 9000

  validation {
    condition     = var.s3_port >= 1024 && var.s3_port <= 65535
    error_message = "s3_port is ${var.s3_port}; it must be from 1024 to 65535."
  }
  validation {
    condition = !contains(concat(
      [for i in range(var.gateway_count) : var.gateway_base_port + i],
      var.nodes == null ? [for i in range(var.node_count) : var.node_base_port + i] : [for node in values(var.nodes) : node.port],
    ), var.s3_port)
    error_message = "s3_port is ${var.s3_port}, which a gateway or a node has; choose another one."
  }
}

variable "memory" {
  description = "What each storage node keeps within (with node_count)."
  type        = string
  default     = "128MiB"
}

variable "replicas" {
  description = "N. Chosen when the cluster is founded, for good."
  type        = number
  default     = 3
}

variable "namespaces" {
  description = "Settings of namespaces, as in modules/cluster."
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
