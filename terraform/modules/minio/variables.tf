variable "bucket" {
  description = "The bucket to make."
  type        = string
}

variable "region" {
  type    = string
  default = "us-east-1"
}

variable "policies" {
  description = "What each kind of process may do, as IAM policy documents by kind (modules/cluster's bucket_policies)."
  type        = map(string)

  validation {
    condition     = alltrue([for kind, policy in var.policies : can(regex("^[a-z-]{1,20}$", kind)) && can(jsondecode(policy))])
    error_message = "policies must be JSON documents by kind, each kind 1 to 20 of a-z and '-'."
  }
}

variable "publish_command" {
  description = "What the host runs for each kind, as root, with $kind set and the lines NAME=\"VALUE\" of its credentials in the file $file: where others fetch them. null: they stay in /etc/minio/KIND.env, to be copied by hand."
  type        = string
  default     = null
}

variable "data_device" {
  description = "Block device for the objects, made a file system if it has none; null: the root disk."
  type        = string
  default     = null

  validation {
    condition     = var.data_device == null || can(regex("^/dev/[A-Za-z0-9/_.-]+$", var.data_device))
    error_message = "data_device is '${coalesce(var.data_device, "-")}'; it must be a path under /dev."
  }
}

variable "server" {
  description = "MinIO's server: where a new host downloads it, and its SHA-256."
  type        = object({ url = string, sha256 = string })

  validation {
    condition     = startswith(var.server.url, "https://") && can(regex("^[0-9a-f]{64}$", var.server.sha256))
    error_message = "server has url '${var.server.url}' and sha256 '${var.server.sha256}'; it must be https://..., and 64 hex digits."
  }
}

variable "client" {
  description = "MinIO's client mc, likewise."
  type        = object({ url = string, sha256 = string })

  validation {
    condition     = startswith(var.client.url, "https://") && can(regex("^[0-9a-f]{64}$", var.client.sha256))
    error_message = "client has url '${var.client.url}' and sha256 '${var.client.sha256}'; it must be https://..., and 64 hex digits."
  }
}
