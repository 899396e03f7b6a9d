# Three nodes and MinIO on a machine of its own, for trials.
ami          = "ami-00000000000000000" # Amazon Linux 2023, arm64, of your region
bucket       = "example-carts"
client_cidrs = ["10.0.0.0/8"]
binary = {
  bucket  = "example-artefacts"
  key     = "cartwheel/1.0.0/cartwheel-aarch64"
  sha256  = "0000000000000000000000000000000000000000000000000000000000000000"
  version = "1.0.0"
}
nodes = {
  node-a = { zone = "eu-central-1a", number = 10 }
  node-b = { zone = "eu-central-1b", number = 10 }
  node-c = { zone = "eu-central-1c", number = 10 }
}
gateways = {
  one = { zone = "eu-central-1a", number = 100 }
  two = { zone = "eu-central-1b", number = 100 }
}
object_store = "minio"
minio = {
  # One release, named exactly, with the checksums that you verified.
  server = { url = "https://dl.min.io/server/minio/release/linux-arm64/archive/minio.RELEASE.2025-04-22T22-12-26Z", sha256 = "0000000000000000000000000000000000000000000000000000000000000000" }
  client = { url = "https://dl.min.io/client/mc/release/linux-arm64/archive/mc.RELEASE.2025-04-16T18-13-26Z", sha256 = "0000000000000000000000000000000000000000000000000000000000000000" }
}
