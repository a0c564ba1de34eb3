package run

// Endpoints are the flags of services that send requests to where their users say.
type Endpoints struct {
	AllowEndpoint []string `help:"Network (CIDR), address or host that webhooks may be at although it is not public; it may then be plain http. Repeatable." placeholder:"CIDR|HOST"`
}
