package kms

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/config"
)

// amazon is a key of AWS KMS.
type amazon struct{ arn, region, endpoint string }

func openAmazon(arn, endpoint string) (service, error) {
	parts := strings.SplitN(arn, ":", 6) // arn:aws:kms:REGION:ACCOUNT:key/ID
	if len(parts) != 6 || parts[0] != "arn" || parts[2] != "kms" || parts[3] == "" || parts[5] == "" {
		return nil, errors.New("want aws-kms://arn:aws:kms:REGION:ACCOUNT:key/ID")
	}
	if endpoint == "" {
		endpoint = "https://kms." + parts[3] + ".amazonaws.com"
		if parts[1] == "aws-cn" {
			endpoint += ".cn"
		}
	}
	return &amazon{arn: arn, region: parts[3], endpoint: endpoint}, nil
}

func (a *amazon) call(ctx context.Context, client *http.Client, encrypt bool, text []byte) ([]byte, error) {
	in := map[string]any{"KeyId": a.arn, "EncryptionContext": map[string]string{"purpose": purpose}}
	action := "Decrypt"
	if encrypt {
		action, in["Plaintext"] = "Encrypt", text
	} else {
		in["CiphertextBlob"] = text
	}
	body, err := json.Marshal(in)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, a.endpoint+"/", bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/x-amz-json-1.1")
	req.Header.Set("X-Amz-Target", "TrentService."+action)
	machine, err := config.LoadDefaultConfig(ctx, config.WithRegion(a.region))
	if err != nil {
		return nil, fmt.Errorf("find the machine's own credentials: %w", err)
	}
	creds, err := machine.Credentials.Retrieve(ctx)
	if err != nil {
		return nil, fmt.Errorf("find the machine's own credentials: %w", err)
	}
	sum := sha256.Sum256(body)
	if err := v4.NewSigner().SignHTTP(ctx, creds, req, hex.EncodeToString(sum[:]), "kms", a.region, time.Now()); err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	var out struct{ CiphertextBlob, Plaintext []byte }
	err = ask(client, req, &out, func(body []byte) string {
		var said struct {
			Type    string `json:"__type"`
			Message string `json:"message"`
		}
		_ = json.Unmarshal(body, &said) // what is no JSON says nothing
		return strings.Trim(said.Type+": "+said.Message, ": ")
	})
	if encrypt {
		return out.CiphertextBlob, err
	}
	return out.Plaintext, err
}
