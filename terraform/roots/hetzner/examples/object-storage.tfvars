# Three nodes in three locations, two gateways, an object store that is there already.
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
object_storage = { endpoint = "https://fsn1.your-objectstorage.com", region = "fsn1" }
