terraform {
  required_version = ">= 1.9.0"
  required_providers {
    hcloud = {
      source  = "hetznercloud/hcloud"
      version = "~> 1.50"
    }
  }
}

# The token comes from HCLOUD_TOKEN, so it is in no file and in no state.
provider "hcloud" {}
