variable "name" {
  description = "The cluster's name; host names and labels are made of it."
  type        = string
  default     = "cartwheel"

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{0,30}$", var.name))
    error_message = "name is '${var.name}'; it must be 1 to 31 of a-z, 0-9 and '-', starting with a letter."
  }
}

variable "nodes" {
  description = <<-EOT
    Storage nodes by id. The id outlives processes, disks and machines.
    address: where others reach it; listen_address: what it binds; weight: its share (1 to 1000);
    memory: what the process keeps within; data_dir: where its log lies; environment: further settings.
  EOT
  type = map(object({
    address        = string
    listen_address = optional(string, "0.0.0.0")
    port           = optional(number, 7101)
    zone           = optional(string, "default")
    weight         = optional(number, 1)
    memory         = optional(string, "1GiB")
    data_dir       = optional(string)
    environment    = optional(map(string), {})
  }))

  validation {
    condition     = length(var.nodes) >= 1 && length(var.nodes) <= 1024
    error_message = "nodes has ${length(var.nodes)} entries; it must have 1 to 1024."
  }
  validation {
    condition     = alltrue([for id in keys(var.nodes) : can(regex("^[a-z][a-z0-9_-]{0,39}$", id))])
    error_message = "nodes has the ids ${join(", ", [for id in keys(var.nodes) : "'${id}'" if !can(regex("^[a-z][a-z0-9_-]{0,39}$", id))])}; an id must be 1 to 40 of a-z, 0-9, '_' and '-', starting with a letter."
  }
  validation {
    condition     = alltrue([for node in values(var.nodes) : can(regex("^[A-Za-z0-9]([A-Za-z0-9.:-]*[A-Za-z0-9])?$", node.address))])
    error_message = "nodes: the address of ${join(", ", [for id, node in var.nodes : "${id} is '${node.address}'" if !can(regex("^[A-Za-z0-9]([A-Za-z0-9.:-]*[A-Za-z0-9])?$", node.address))])}; it must be a host name or an IP address, without a port."
  }
  validation {
    condition     = alltrue([for node in values(var.nodes) : can(regex("^[A-Za-z0-9.:-]+$", node.listen_address))])
    error_message = "nodes: the listen_address of ${join(", ", [for id, node in var.nodes : "${id} is '${node.listen_address}'" if !can(regex("^[A-Za-z0-9.:-]+$", node.listen_address))])}; it must be an IP address of the host, or 0.0.0.0."
  }
  validation {
    condition     = alltrue([for node in values(var.nodes) : node.port >= 1024 && node.port <= 65535 && floor(node.port) == node.port])
    error_message = "nodes: the port of ${join(", ", [for id, node in var.nodes : "${id} is ${node.port}" if !(node.port >= 1024 && node.port <= 65535 && floor(node.port) == node.port)])}; it must be a whole number from 1024 to 65535 (the service does not run as root)."
  }
  validation {
    condition     = alltrue([for node in values(var.nodes) : node.weight >= 1 && node.weight <= 1000 && floor(node.weight) == node.weight])
    error_message = "nodes: the weight of ${join(", ", [for id, node in var.nodes : "${id} is ${node.weight}" if !(node.weight >= 1 && node.weight <= 1000 && floor(node.weight) == node.weight)])}; it must be a whole number from 1 to 1000."
  }
  validation {
    condition     = alltrue([for node in values(var.nodes) : can(regex("^[A-Za-z0-9][A-Za-z0-9._-]{0,39}$", node.zone))])
    error_message = "nodes: the zone of ${join(", ", [for id, node in var.nodes : "${id} is '${node.zone}'" if !can(regex("^[A-Za-z0-9][A-Za-z0-9._-]{0,39}$", node.zone))])}; it must be 1 to 40 of letters, digits, '.', '_' and '-'."
  }
  validation {
    condition = alltrue([
      for node in values(var.nodes) : can(regex("^[1-9][0-9]{0,5}(MiB|GiB|TiB)$", node.memory)) ? (
        tonumber(regex("^[0-9]+", node.memory)) * { MiB = 1, GiB = 1024, TiB = 1048576 }[regex("[A-Z].*$", node.memory)] >= 64 &&
        tonumber(regex("^[0-9]+", node.memory)) * { MiB = 1, GiB = 1024, TiB = 1048576 }[regex("[A-Z].*$", node.memory)] <= 1048576
      ) : false
    ])
    error_message = "nodes: the memory is ${join(", ", [for id, node in var.nodes : "${node.memory} (${id})"])}; each must be from 64MiB to 1TiB, written as 512MiB or 4GiB."
  }
  validation {
    condition     = alltrue([for node in values(var.nodes) : node.data_dir == null || can(regex("^/[A-Za-z0-9._/-]+$", node.data_dir))])
    error_message = "nodes: the data_dir of ${join(", ", [for id, node in var.nodes : "${id} is '${coalesce(node.data_dir, "-")}'" if !(node.data_dir == null || can(regex("^/[A-Za-z0-9._/-]+$", node.data_dir)))])}; it must be an absolute path of letters, digits and ._/-."
  }
  validation {
    condition     = length(distinct([for node in values(var.nodes) : "${node.address}:${node.port}"])) == length(var.nodes)
    error_message = "nodes: ${join(", ", distinct([for a, x in var.nodes : "${x.address}:${x.port}" if length([for y in values(var.nodes) : 1 if y.address == x.address && y.port == x.port]) > 1]))} is the address of more than one node; give each its own address or port."
  }
  validation {
    condition = alltrue(flatten([for node in values(var.nodes) : [
      for name, value in node.environment : can(regex("^(CARTWHEEL|AWS)_[A-Z0-9_]+$", name)) && can(regex("^[^\"'\\\\$`\n]*$", value))
    ]]))
    error_message = "nodes: environment takes names that start with CARTWHEEL_ or AWS_, and values on one line without quotes, '$', '`' and '\\'."
  }
  validation {
    condition = alltrue(flatten([for node in values(var.nodes) : [
      for name in keys(node.environment) : !contains(["CARTWHEEL_CLUSTER_SECRET", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID"], name)
    ]]))
    error_message = "nodes: environment must hold no secret (CARTWHEEL_CLUSTER_SECRET, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN): it would lie in the state and in user data. Use secrets.env_file or secrets.fetch_command."
  }
}

variable "gateways" {
  description = "Gateways by name: stateless, serve clients. Fields as for nodes."
  type = map(object({
    address        = string
    listen_address = optional(string, "0.0.0.0")
    port           = optional(number, 8080)
    environment    = optional(map(string), {})
  }))

  validation {
    condition     = length(var.gateways) >= 1 && length(var.gateways) <= 256
    error_message = "gateways has ${length(var.gateways)} entries; it must have 1 to 256."
  }
  validation {
    condition     = alltrue([for id in keys(var.gateways) : can(regex("^[a-z0-9][a-z0-9_-]{0,39}$", id))])
    error_message = "gateways has the names ${join(", ", [for id in keys(var.gateways) : "'${id}'" if !can(regex("^[a-z0-9][a-z0-9_-]{0,39}$", id))])}; a name must be 1 to 40 of a-z, 0-9, '_' and '-', starting with a letter or digit."
  }
  validation {
    condition     = alltrue([for g in values(var.gateways) : can(regex("^[A-Za-z0-9]([A-Za-z0-9.:-]*[A-Za-z0-9])?$", g.address)) && can(regex("^[A-Za-z0-9.:-]+$", g.listen_address))])
    error_message = "gateways: address and listen_address must be host names or IP addresses, without a port; they are ${join(", ", [for id, g in var.gateways : "'${g.address}' and '${g.listen_address}' (${id})"])}."
  }
  validation {
    condition     = alltrue([for g in values(var.gateways) : g.port >= 1024 && g.port <= 65535 && floor(g.port) == g.port])
    error_message = "gateways: the port of ${join(", ", [for id, g in var.gateways : "${id} is ${g.port}" if !(g.port >= 1024 && g.port <= 65535 && floor(g.port) == g.port)])}; it must be a whole number from 1024 to 65535 (the service does not run as root)."
  }
  validation {
    condition = length(setsubtract(
      toset([for g in values(var.gateways) : "${g.address}:${g.port}"]),
      toset([for n in values(var.nodes) : "${n.address}:${n.port}"]),
    )) == length(var.gateways)
    error_message = "gateways: ${join(", ", [for id, g in var.gateways : "${g.address}:${g.port} (${id})"])}; each must be an address that no other gateway and no storage node has."
  }
  validation {
    condition = alltrue(flatten([for g in values(var.gateways) : [
      for name, value in g.environment : can(regex("^(CARTWHEEL|AWS)_[A-Z0-9_]+$", name)) && can(regex("^[^\"'\\\\$`\n]*$", value)) &&
      !contains(["CARTWHEEL_CLUSTER_SECRET", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID"], name)
    ]]))
    error_message = "gateways: environment takes names that start with CARTWHEEL_ or AWS_, values on one line without quotes, '$', '`' and '\\', and no secrets."
  }
}

variable "bucket" {
  description = "The bucket's name."
  type        = string

  validation {
    condition     = can(regex("^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$", var.bucket))
    error_message = "bucket is '${var.bucket}'; it must be 3 to 63 of a-z, 0-9, '-' and '.', with a letter or digit at each end (the name alone, not a URL)."
  }
  validation {
    condition     = !strcontains(var.bucket, "..") && !can(regex("^[0-9]+\\.[0-9]+\\.[0-9]+\\.[0-9]+$", var.bucket))
    error_message = "bucket is '${var.bucket}'; it must not look like an IP address nor have two dots in a row."
  }
}

variable "prefix" {
  description = "What all keys of this cluster in the bucket start with; empty: the whole bucket."
  type        = string
  default     = ""

  validation {
    condition     = var.prefix == "" || (length(var.prefix) <= 256 && alltrue([for part in split("/", var.prefix) : can(regex("^[A-Za-z0-9!_.*'()=-]+$", part)) && part != "." && part != ".."]))
    error_message = "prefix is '${var.prefix}'; it must be at most 256 of A-Z, a-z, 0-9 and !-_.*'()=/ with no empty, '.' or '..' parts and no '/' at either end."
  }
}

variable "endpoint" {
  description = "URL of the object store; null: AWS itself."
  type        = string
  default     = null

  validation {
    condition     = var.endpoint == null || can(regex("^https?://[A-Za-z0-9.-]+(:[0-9]+)?/?$", var.endpoint))
    error_message = "endpoint is '${coalesce(var.endpoint, "-")}'; it must be http://HOST:PORT or https://HOST:PORT, without credentials or a path."
  }
}

variable "region" {
  description = "Region of the bucket; stores without regions take us-east-1."
  type        = string
  default     = "us-east-1"

  validation {
    condition     = can(regex("^[a-z0-9-]{2,32}$", var.region))
    error_message = "region is '${var.region}'; it must be 2 to 32 of a-z, 0-9 and '-'."
  }
}

variable "replicas" {
  description = "N: replicas of each key. Chosen when the cluster is founded, for good."
  type        = number
  default     = 3

  validation {
    condition     = var.replicas >= 1 && var.replicas <= 7 && floor(var.replicas) == var.replicas
    error_message = "replicas is ${var.replicas}; it must be a whole number from 1 to 7."
  }
  validation {
    condition     = var.replicas <= length(var.nodes)
    error_message = "replicas is ${var.replicas}, but there are ${length(var.nodes)} nodes; it must be at most the number of nodes."
  }
}

variable "expect_nodes" {
  description = "Storage nodes that the cluster may grow to: chooses the number of partitions when it is founded, for good. Not the number of today."
  type        = number
  default     = 30

  validation {
    condition     = var.expect_nodes >= 1 && var.expect_nodes <= 1024 && floor(var.expect_nodes) == var.expect_nodes
    error_message = "expect_nodes is ${var.expect_nodes}; it must be a whole number from 1 to 1024."
  }
}

variable "namespaces" {
  description = "Settings of namespaces, by name; what is null stays as it is (r, w: a majority; durability: disk)."
  type = map(object({
    r              = optional(number)
    w              = optional(number)
    durability     = optional(string)
    ttl            = optional(string)
    max_siblings   = optional(number)
    on_blind_write = optional(string)
  }))
  default = {}

  validation {
    condition     = alltrue([for name in keys(var.namespaces) : can(regex("^[a-z0-9][a-z0-9._-]{0,62}$", name))])
    error_message = "namespaces has the names ${join(", ", [for name in keys(var.namespaces) : "'${name}'"])}; each must be 1 to 63 of a-z, 0-9, '.', '_' and '-', starting with a letter or digit."
  }
  validation {
    condition     = alltrue([for s in values(var.namespaces) : coalesce(s.r, 1) >= 1 && coalesce(s.r, 1) <= var.replicas && coalesce(s.w, 1) >= 1 && coalesce(s.w, 1) <= var.replicas])
    error_message = "namespaces: r and w must be from 1 to replicas (${var.replicas}); they are ${join(", ", [for name, s in var.namespaces : "r=${s.r == null ? "-" : s.r} w=${s.w == null ? "-" : s.w} (${name})"])}."
  }
  validation {
    condition     = alltrue([for s in values(var.namespaces) : contains(["memory", "disk", "bucket"], coalesce(s.durability, "disk"))])
    error_message = "namespaces: the durability is ${join(", ", [for name, s in var.namespaces : "'${coalesce(s.durability, "disk")}' (${name})"])}; it must be memory, disk or bucket."
  }
  validation {
    condition     = alltrue([for s in values(var.namespaces) : contains(["sibling", "reject"], coalesce(s.on_blind_write, "sibling"))])
    error_message = "namespaces: on_blind_write is ${join(", ", [for name, s in var.namespaces : "'${coalesce(s.on_blind_write, "sibling")}' (${name})"])}; it must be sibling or reject."
  }
  validation {
    condition     = alltrue([for s in values(var.namespaces) : coalesce(s.max_siblings, 1) >= 1 && coalesce(s.max_siblings, 1) <= 1000])
    error_message = "namespaces: max_siblings is ${join(", ", [for name, s in var.namespaces : "${coalesce(s.max_siblings, 100)} (${name})"])}; it must be from 1 to 1000."
  }
  validation {
    condition     = alltrue([for s in values(var.namespaces) : can(regex("^(none|[1-9][0-9]*(s|m|h|d))$", coalesce(s.ttl, "none")))])
    error_message = "namespaces: ttl is ${join(", ", [for name, s in var.namespaces : "'${coalesce(s.ttl, "none")}' (${name})"])}; it must be none or a duration such as 30m or 7d."
  }
}

variable "secrets" {
  description = <<-EOT
    Where hosts find their secrets; never the secrets themselves. A reference leads to lines NAME="VALUE" with
    AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and, if you make it yourself, CARTWHEEL_CLUSTER_SECRET.
    env_file: a file on the host that somebody else puts there; the services wait for it.
    fetch_command: what the host runs as root before each start; it prints those lines (put secret-store names here).
    It may use $kind, which is storage-node or gateway.
    Neither: credentials come from the machine's role, and the cluster makes its own secret and keeps it in the bucket.
    cluster_secret: do those lines have CARTWHEEL_CLUSTER_SECRET? Then all hosts must get the same one.
  EOT
  type = object({
    env_file       = optional(string)
    fetch_command  = optional(string)
    cluster_secret = optional(bool, false)
  })
  default = {}

  validation {
    condition     = var.secrets.env_file == null || var.secrets.fetch_command == null
    error_message = "secrets has env_file '${coalesce(var.secrets.env_file, "-")}' and fetch_command '${coalesce(var.secrets.fetch_command, "-")}'; give one of them at most."
  }
  validation {
    condition     = var.secrets.env_file == null || can(regex("^/[A-Za-z0-9._/-]+$", var.secrets.env_file))
    error_message = "secrets.env_file is '${coalesce(var.secrets.env_file, "-")}'; it must be an absolute path on the host, of letters, digits and ._/-."
  }
  validation {
    condition     = var.secrets.fetch_command == null || !can(regex("(SECRET|KEY|TOKEN|PASSWORD)[A-Z_]*=[\"']?[A-Za-z0-9/+=_-]{8}", var.secrets.fetch_command))
    error_message = "secrets.fetch_command seems to have a secret in it; it must only say where the host fetches it."
  }
  validation {
    condition     = !var.secrets.cluster_secret || var.secrets.env_file != null || var.secrets.fetch_command != null
    error_message = "secrets.cluster_secret is true, but there is neither env_file nor fetch_command to get it from."
  }
}

variable "binary" {
  description = "The program: path on the host; url and sha256: where a new host downloads it (null: it is in the image, or put there by other means); version: told to people, and changes what hosts are told to run."
  type = object({
    path    = optional(string, "/usr/local/bin/cartwheel")
    url     = optional(string)
    sha256  = optional(string)
    version = optional(string, "unknown")
  })
  default = {}

  validation {
    condition     = can(regex("^/[A-Za-z0-9._/-]+$", var.binary.path))
    error_message = "binary.path is '${var.binary.path}'; it must be an absolute path of letters, digits and ._/-."
  }
  validation {
    condition     = var.binary.url == null || can(regex("^(https|s3)://[A-Za-z0-9._~:/?=&%+-]+$", var.binary.url))
    error_message = "binary.url is '${coalesce(var.binary.url, "-")}'; it must be https://... or s3://..."
  }
  validation {
    condition     = var.binary.url == null || can(regex("^[0-9a-f]{64}$", var.binary.sha256))
    error_message = "binary.sha256 is '${coalesce(var.binary.sha256, "-")}'; with a url it must be the SHA-256 of the program, 64 hex digits."
  }
  validation {
    condition     = can(regex("^[A-Za-z0-9._+-]{1,64}$", var.binary.version))
    error_message = "binary.version is '${var.binary.version}'; it must be 1 to 64 of letters, digits and ._+-."
  }
}

variable "log_format" {
  description = "text or json."
  type        = string
  default     = "json"

  validation {
    condition     = contains(["text", "json"], var.log_format)
    error_message = "log_format is '${var.log_format}'; it must be text or json."
  }
}
