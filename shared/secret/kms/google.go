package kms

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strings"

	"cloud.google.com/go/auth/credentials"
)

// google is a key of Google's Cloud KMS.
type google struct{ name, endpoint string }

var googleName = regexp.MustCompile(`^projects/[^/]+/locations/[^/]+/keyRings/[^/]+/cryptoKeys/[^/]+$`)

func openGoogle(name, endpoint string) (service, error) {
	if !googleName.MatchString(name) {
		return nil, errors.New("want gcp-kms://projects/P/locations/L/keyRings/R/cryptoKeys/K")
	}
	if endpoint == "" {
		endpoint = "https://cloudkms.googleapis.com"
	}
	return &google{name, endpoint}, nil
}

func (g *google) call(ctx context.Context, client *http.Client, encrypt bool, text []byte) ([]byte, error) {
	in := map[string]any{"additionalAuthenticatedData": []byte(purpose)}
	action := "decrypt"
	if encrypt {
		action, in["plaintext"] = "encrypt", text
	} else {
		in["ciphertext"] = text
	}
	body, err := json.Marshal(in)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, g.endpoint+"/v1/"+g.name+":"+action, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	if req.URL.Scheme == "https" { // a token in the clear is nobody's any more
		creds, err := credentials.DetectDefault(&credentials.DetectOptions{
			Scopes: []string{"https://www.googleapis.com/auth/cloudkms"}, Client: client,
		})
		if err != nil {
			return nil, fmt.Errorf("find application default credentials: %w", err)
		}
		token, err := creds.Token(ctx)
		if err != nil {
			return nil, fmt.Errorf("get a token: %w", err)
		}
		req.Header.Set("Authorization", "Bearer "+token.Value)
	}
	var out struct {
		Ciphertext []byte `json:"ciphertext"`
		Plaintext  []byte `json:"plaintext"`
	}
	err = ask(client, req, &out, func(body []byte) string {
		var said struct {
			Error struct{ Status, Message string } `json:"error"`
		}
		_ = json.Unmarshal(body, &said) // what is no JSON says nothing
		return strings.Trim(said.Error.Status+": "+said.Error.Message, ": ")
	})
	if encrypt {
		return out.Ciphertext, err
	}
	return out.Plaintext, err
}
