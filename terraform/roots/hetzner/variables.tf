variable "name" {
  type    = string
  default = "cartwheel"
}

variable "network_zone" {
  description = "Where the private network is; its locations are the zones of the nodes."
  type        = string
  default     = "eu-central"
}

variable "network_cidr" {
  type    = string
  default = "10.50.0.0/16"

  validation {
    condition     = can(cidrhost(cidrsubnet(var.network_cidr, 8, 1), 250))
    error_message = "network_cidr is '${var.network_cidr}'; it must be a network such as 10.50.0.0/16."
  }
}

variable "image" {
  description = "Named exactly, so that nothing changes by itself."
  type        = string
  default     = "debian-12"
}

variable "nodes" {
  description = "Storage nodes by id. location: their zone; number: place in the private network (10 to 99), which makes the address, for good."
  type = map(object({
    location    = string
    number      = number
    weight      = optional(number, 1)
    memory      = optional(string, "3GiB")
    server_type = optional(string, "cx22")
  }))

  validation {
    condition     = alltrue([for node in values(var.nodes) : node.number >= 10 && node.number <= 99])
    error_message = "nodes: number must be from 10 to 99; it is ${join(", ", [for id, n in var.nodes : "${n.number} (${id})"])}."
  }
}

variable "gateways" {
  description = "Gateways by name. number: 100 to 199, as for nodes."
  type = map(object({
    location    = string
    number      = number
    server_type = optional(string, "cx22")
  }))

  validation {
    condition     = alltrue([for g in values(var.gateways) : g.number >= 100 && g.number <= 199])
    error_message = "gateways: number must be from 100 to 199; it is ${join(", ", [for id, g in var.gateways : "${g.number} (${id})"])}."
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

variable "binary" {
  description = "The program: where hosts download it, its SHA-256, and its version."
  type        = object({ url = string, sha256 = string, version = string })
}

variable "ssh_keys" {
  description = "Names of ssh keys of the project, for root."
  type        = list(string)

  validation {
    condition     = length(var.ssh_keys) > 0
    error_message = "ssh_keys is empty; without a key the provider would mail a password."
  }
}

variable "ssh_cidrs" {
  description = "Who may reach port 22. You need it once, to put /etc/cartwheel/secrets.env on each host."
  type        = list(string)

  validation {
    condition     = alltrue([for cidr in var.ssh_cidrs : can(cidrhost(cidr, 0)) && !endswith(cidr, "/0")])
    error_message = "ssh_cidrs is ${jsonencode(var.ssh_cidrs)}; each must be a network such as 192.0.2.0/24, and none may be everybody."
  }
}

variable "load_balancer" {
  description = "public: does it get a public address? It has no firewall and clients need no credentials, so then everybody can write. certificate: name of a certificate of the project, for HTTPS."
  type = object({
    type        = optional(string, "lb11")
    location    = optional(string, "fsn1")
    public      = optional(bool, false)
    certificate = optional(string)
  })
  default = {}
}

variable "bucket" {
  type = string
}

variable "prefix" {
  type    = string
  default = "cluster"
}

variable "object_storage" {
  description = "An object store that has the bucket already, such as https://fsn1.your-objectstorage.com; null: MinIO on a machine (minio)."
  type        = object({ endpoint = string, region = string })
  default     = null
}

variable "minio" {
  description = "MinIO's programs and machine, if there is no object_storage (one disk: for trials)."
  type = object({
    server      = object({ url = string, sha256 = string })
    client      = object({ url = string, sha256 = string })
    location    = optional(string, "fsn1")
    server_type = optional(string, "cx22")
    disk_gib    = optional(number, 50)
  })
  default = null

  validation {
    condition     = (var.object_storage == null) != (var.minio == null)
    error_message = "give either object_storage or minio."
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
