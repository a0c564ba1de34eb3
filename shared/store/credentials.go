package store

// S3Credentials are what the sealed Connector.Credentials of an s3 connector hold, as JSON.
type S3Credentials struct {
	AccessKeyID     string `json:"aws_access_key_id"`
	SecretAccessKey string `json:"aws_secret_access_key"`
}

// AzureCredentials are what the sealed Connector.Credentials of an azure connector hold, as JSON.
type AzureCredentials struct {
	TenantID     string `json:"tenant_id"`
	ClientID     string `json:"client_id"`
	ClientSecret string `json:"client_secret"`
}

// HasDriver reports whether the storage of the connector can be opened. Connectors of other providers are records only:
// they can be configured, and nothing can be read or written through them.
func (c Connector) HasDriver() bool {
	return c.Provider == "dir" || c.Provider == "gcs" || c.Provider == "s3"
}
