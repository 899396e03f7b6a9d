# Three hosts, a gateway on each, MinIO elsewhere. Before the first apply put on every host, readable by root alone:
#   /etc/cartwheel/secrets.env
#     AWS_ACCESS_KEY_ID="..."
#     AWS_SECRET_ACCESS_KEY="..."
ssh      = { user = "admin", sudo = true }
bucket   = "carts"
prefix   = "prod"
endpoint = "http://10.0.0.9:9000"
nodes = {
  node-a = { host = "10.0.0.1", zone = "rack-1" }
  node-b = { host = "10.0.0.2", zone = "rack-2" }
  node-c = { host = "10.0.0.3", zone = "rack-3" }
}
gateways = {
  one   = { host = "10.0.0.1" }
  two   = { host = "10.0.0.2" }
  three = { host = "10.0.0.3" }
}
