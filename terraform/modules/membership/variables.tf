variable "nodes" {
  description = "Members by id, with the weight and zone that the ring is to have them at."
  type        = map(object({ weight = number, zone = string }))
}

variable "gateway_url" {
  description = "A gateway, or the load balancer before them; this machine must reach it."
  type        = string

  validation {
    condition     = startswith(var.gateway_url, "http://")
    error_message = "gateway_url is '${var.gateway_url}'; it must be http://..., as the program speaks no https."
  }
}

variable "binary" {
  description = "cartwheel on this machine."
  type        = string
  default     = "cartwheel"
}

variable "marks" {
  description = "A folder on this machine for a mark that says that all is being taken down."
  type        = string
}
