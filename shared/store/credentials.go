package store

// S3Credentials are what the sealed Connector.Credentials of an s3 connector hold, as JSON.
type S3Credentials struct {
	AccessKeyID     string `json:"aws_access_key_id"`
	SecretAccessKey string `json:"aws_secret_access_key"`
}

// AzureCredentials are what the sealed Connector.Credentials of an azure connector hold, as JSON: a service principal, a
// shared access signature or the key of the account.
type AzureCredentials struct {
	TenantID     string `json:"tenant_id,omitempty"`
	ClientID     string `json:"client_id,omitempty"`
	ClientSecret string `json:"client_secret,omitempty"`
	SAS          string `json:"sas_token,omitempty"`
	AccountKey   string `json:"account_key,omitempty"`
}
