package run

// Endpoints are the flags of services that send requests to where their users say.
type Endpoints struct {
	AllowEndpoint []string `help:"Network (CIDR), address or host that webhooks and the endpoints of storage connectors may be at although it is not public; webhooks may then be plain http. Repeatable." placeholder:"CIDR|HOST"`
}
