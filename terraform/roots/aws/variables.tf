variable "name" {
  description = "The cluster's name; everything is tagged with it."
  type        = string
  default     = "cartwheel"
}

variable "region" {
  type    = string
  default = "eu-central-1"
}

variable "zones" {
  description = "Availability zones, at least as many as replicas. The order decides their subnets: only ever add at the end."
  type        = list(string)
  default     = ["eu-central-1a", "eu-central-1b", "eu-central-1c"]

  validation {
    condition     = length(var.zones) >= 2 && length(var.zones) <= 6 && length(distinct(var.zones)) == length(var.zones)
    error_message = "zones has ${length(var.zones)} entries; it must have 2 to 6 different ones (the load balancer needs two)."
  }
}

variable "vpc_cidr" {
  type    = string
  default = "10.40.0.0/16"

  validation {
    condition     = can(cidrsubnet(var.vpc_cidr, 8, 15))
    error_message = "vpc_cidr is '${var.vpc_cidr}'; it must be a network such as 10.40.0.0/16."
  }
}

variable "nodes" {
  description = "Storage nodes by id. number: its place in the zone's subnet (10 to 99), which makes its address, for good."
  type = map(object({
    zone          = string
    number        = number
    weight        = optional(number, 1)
    memory        = optional(string, "3GiB")
    instance_type = optional(string, "t4g.medium")
  }))

  validation {
    condition     = alltrue([for node in values(var.nodes) : contains(var.zones, node.zone) && node.number >= 10 && node.number <= 99])
    error_message = "nodes: zone must be one of zones, and number from 10 to 99; they are ${join(", ", [for id, n in var.nodes : "${n.zone} ${n.number} (${id})"])}."
  }
}

variable "gateways" {
  description = "Gateways by name. number: 100 to 199, as for nodes."
  type = map(object({
    zone          = string
    number        = number
    instance_type = optional(string, "t4g.small")
  }))

  validation {
    condition     = alltrue([for g in values(var.gateways) : contains(var.zones, g.zone) && g.number >= 100 && g.number <= 199])
    error_message = "gateways: zone must be one of zones, and number from 100 to 199; they are ${join(", ", [for id, g in var.gateways : "${g.zone} ${g.number} (${id})"])}."
  }
}

variable "replicas" {
  type    = number
  default = 3
}

variable "expect_nodes" {
  type    = number
  default = 30
}

variable "ami" {
  description = "An Amazon Linux 2023 image for the instances' architecture, named exactly so that nothing changes by itself."
  type        = string

  validation {
    condition     = can(regex("^ami-[0-9a-f]{8,17}$", var.ami))
    error_message = "ami is '${var.ami}'; it must be ami- and 8 to 17 hex digits."
  }
}

variable "binary" {
  description = "The program: bucket and key of an S3 object that you put there, its SHA-256, and its version."
  type        = object({ bucket = string, key = string, sha256 = string, version = string })
}

variable "client_cidrs" {
  description = "Who may reach the load balancer. Clients need no credentials, so 0.0.0.0/0 lets everybody write."
  type        = list(string)

  validation {
    condition     = alltrue([for cidr in var.client_cidrs : can(cidrhost(cidr, 0))])
    error_message = "client_cidrs is ${jsonencode(var.client_cidrs)}; each must be a network such as 10.0.0.0/8."
  }
}

variable "internal" {
  description = "Is the load balancer reachable from inside the VPC (and what is connected to it) alone?"
  type        = bool
  default     = true
}

variable "certificate_arn" {
  description = "A certificate for the load balancer: then it serves HTTPS at 443, else HTTP at 80."
  type        = string
  default     = null
}

variable "ssh_cidrs" {
  description = "Who may reach port 22 (inside the VPC: instances have no public address). Empty: nobody."
  type        = list(string)
  default     = []
}

variable "key_name" {
  type    = string
  default = null
}

variable "object_store" {
  description = "s3, or minio: a machine of this VPC (one disk: for trials)."
  type        = string
  default     = "s3"

  validation {
    condition     = contains(["s3", "minio"], var.object_store)
    error_message = "object_store is '${var.object_store}'; it must be s3 or minio."
  }
}

variable "bucket" {
  description = "Name of the bucket to make; with s3 nobody else in the world may have it."
  type        = string
}

variable "prefix" {
  type    = string
  default = "cluster"
}

variable "minio" {
  description = "With object_store = minio: its programs, and its machine."
  type = object({
    server        = object({ url = string, sha256 = string })
    client        = object({ url = string, sha256 = string })
    instance_type = optional(string, "t4g.medium")
    disk_gib      = optional(number, 100)
  })
  default = null

  validation {
    condition     = var.object_store != "minio" || var.minio != null
    error_message = "object_store is minio; then minio must say where its programs are."
  }
}

variable "membership" {
  description = "Does Terraform change the ring too (weights, nodes that leave)? Then this machine must have cartwheel and reach the load balancer, or gateway_url. The program speaks http alone, so with a certificate give the http:// URL of a gateway in a trusted network, or of a local proxy."
  type = object({
    enabled     = optional(bool, false)
    binary      = optional(string, "cartwheel")
    gateway_url = optional(string)
  })
  default = {}
}
