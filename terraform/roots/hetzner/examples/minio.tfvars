# Three nodes in three locations, two gateways, MinIO on a machine of its own.
bucket    = "carts"
ssh_keys  = ["me"]
ssh_cidrs = ["192.0.2.0/24"]
binary = {
  url     = "https://example.org/cartwheel/1.0.0/cartwheel-x86_64"
  sha256  = "0000000000000000000000000000000000000000000000000000000000000000"
  version = "1.0.0"
}
nodes = {
  node-a = { location = "fsn1", number = 10 }
  node-b = { location = "nbg1", number = 11 }
  node-c = { location = "hel1", number = 12 }
}
gateways = {
  one = { location = "fsn1", number = 100 }
  two = { location = "nbg1", number = 101 }
}
minio = {
  # One release, named exactly, with the checksums that you verified.
  server = { url = "https://dl.min.io/server/minio/release/linux-amd64/archive/minio.RELEASE.2025-04-22T22-12-26Z", sha256 = "0000000000000000000000000000000000000000000000000000000000000000" }
  client = { url = "https://dl.min.io/client/mc/release/linux-amd64/archive/mc.RELEASE.2025-04-16T18-13-26Z", sha256 = "0000000000000000000000000000000000000000000000000000000000000000" }
}
