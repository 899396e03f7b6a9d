# Five nodes in three zones, three gateways, S3.
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
  node-d = { zone = "eu-central-1a", number = 11 }
  node-e = { zone = "eu-central-1b", number = 11 }
}
gateways = {
  one   = { zone = "eu-central-1a", number = 100 }
  two   = { zone = "eu-central-1b", number = 100 }
  three = { zone = "eu-central-1c", number = 100 }
}
