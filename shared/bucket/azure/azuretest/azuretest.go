// Package azuretest runs an Azure Blob Storage to test against.
//
// It is Azurite, which the first use installs with npm, behind a layer of our own over real HTTP. The layer adds what a
// driver must be able to rely on and Azurite lacks (pages of a given length, logins of service principals), and can be
// told to fail. See Server.Inject.
package azuretest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/streaming"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blockblob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/sas"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/service"

	"millrace/shared/bucket/gcs/gcstest"
)

// Server is a storage account.
type Server struct {
	Account string
	Key     string // of the account

	// URL is what goes into azure.Config.Endpoint: http://127.0.0.1:port/account.
	URL string

	// Page is how many blobs stand on one page of a listing. To be set before the first request; 0: as Azure does, 5000.
	Page int

	t        testing.TB
	http     *httptest.Server
	at       *url.URL // of Azurite
	upstream http.Handler
	owner    *service.Client // past the layer
	signed   url.Values      // a shared access signature for everything

	mu       sync.Mutex
	requests []*http.Request
	faults   []*fault
	revoked  bool
}

// Start runs a storage account with these containers until the test ends.
func Start(t testing.TB, containers ...string) *Server {
	t.Helper()
	s := newServer(t, containers)
	s.http = httptest.NewServer(s)
	return s.ready(t)
}

// StartTLS is Start over https, for service principals: it also gives out their tokens. See Server.Login.
func StartTLS(t testing.TB, containers ...string) *Server {
	t.Helper()
	s := newServer(t, containers)
	s.http = httptest.NewTLSServer(s)
	return s.ready(t)
}

func (s *Server) ready(t testing.TB) *Server {
	s.URL = s.http.URL + "/" + s.Account
	t.Cleanup(func() {
		s.http.CloseClientConnections()
		s.http.Close()
	})
	return s
}

func newServer(t testing.TB, containers []string) *Server {
	t.Helper()
	at := azurite(t)
	n := taken.Add(1) - 1
	if n >= accounts {
		t.Fatalf("more than %d storage accounts in one test program", accounts)
	}
	s := &Server{Account: account(n), Key: key, t: t}
	s.at = at
	s.upstream = &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(at) }}
	cred, err := service.NewSharedKeyCredential(s.Account, key)
	if err != nil {
		t.Fatal(err)
	}
	s.owner, err = service.NewClientWithSharedKeyCredential(at.String()+"/"+s.Account, cred, nil)
	if err != nil {
		t.Fatal(err)
	}
	rights := sas.AccountPermissions{Read: true, Write: true, Delete: true, List: true, Create: true, Add: true}
	values, err := sas.AccountSignatureValues{
		Permissions:   rights.String(),
		ResourceTypes: to.Ptr(sas.AccountResourceTypes{Container: true, Object: true}).String(),
		ExpiryTime:    time.Now().Add(time.Hour).UTC(),
	}.SignWithSharedKey(cred)
	if err != nil {
		t.Fatal(err)
	}
	if s.signed, err = url.ParseQuery(values.Encode()); err != nil {
		t.Fatal(err)
	}
	for _, name := range containers {
		s.CreateContainer(name)
	}
	return s
}

// Client is one that trusts the server's certificate.
func (s *Server) Client() *http.Client { return s.http.Client() }

// SAS is a shared access signature for all containers of the account.
func (s *Server) SAS() string { return s.signed.Encode() }

// CreateContainer makes a container.
func (s *Server) CreateContainer(name string) {
	s.t.Helper()
	if _, err := s.owner.CreateContainer(context.Background(), name, nil); err != nil {
		s.t.Fatalf("create container %s: %v", name, err)
	}
}

func (s *Server) blob(containerName, name string) *blockblob.Client {
	return s.owner.NewContainerClient(containerName).NewBlockBlobClient(name)
}

// Put uploads a blob, replacing the one that was there, and returns its ETag without the quotes.
func (s *Server) Put(containerName, name string, data []byte) string {
	s.t.Helper()
	res, err := s.blob(containerName, name).Upload(context.Background(), streaming.NopCloser(bytes.NewReader(data)),
		&blockblob.UploadOptions{HTTPHeaders: &blob.HTTPHeaders{BlobContentType: to.Ptr("video/mp4")}})
	if err != nil {
		s.t.Fatalf("put %q: %v", name, err)
	}
	return unquoted(res.ETag)
}

func unquoted(tag *azcore.ETag) string { return strings.Trim(string(*tag), `"`) }

// Delete removes a blob. Nothing there is no error.
func (s *Server) Delete(containerName, name string) {
	s.t.Helper()
	_, err := s.blob(containerName, name).Delete(context.Background(), nil)
	if err != nil && !bloberror.HasCode(err, bloberror.BlobNotFound) {
		s.t.Fatalf("delete %q: %v", name, err)
	}
}

// Get returns a blob's bytes, and whether there is one.
func (s *Server) Get(containerName, name string) (data []byte, ok bool) {
	s.t.Helper()
	res, err := s.blob(containerName, name).DownloadStream(context.Background(), nil)
	if bloberror.HasCode(err, bloberror.BlobNotFound) {
		return nil, false
	}
	if err == nil {
		data, err = io.ReadAll(res.Body)
		err = errors.Join(err, res.Body.Close())
	}
	if err != nil {
		s.t.Fatalf("get %q: %v", name, err)
	}
	return data, true
}

// Names returns the names of all blobs of a container, in the order of Azurite.
func (s *Server) Names(containerName string) (names []string) {
	s.t.Helper()
	for pages := s.owner.NewContainerClient(containerName).NewListBlobsFlatPager(&container.ListBlobsFlatOptions{}); pages.More(); {
		page, err := pages.NextPage(context.Background())
		if err != nil {
			s.t.Fatal(err)
		}
		for _, item := range page.Segment.BlobItems {
			names = append(names, *item.Name)
		}
	}
	return names
}

// Requests returns how many requests came so far that match.
func (s *Server) Requests(match gcstest.Match) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, r := range s.requests {
		if match(r) {
			n++
		}
	}
	return n
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	// A handler that ends before it has read the body makes the connection useless, and the client's error depends on
	// who is faster.
	body, err := io.ReadAll(r.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	if f := s.arrived(r); f != nil {
		f.do(w, r, http.HandlerFunc(s.serve))
		return
	}
	s.serve(w, r)
}

// arrived notes a request and returns the fault it is to meet, if any.
func (s *Server) arrived(r *http.Request) *fault {
	s.mu.Lock()
	defer s.mu.Unlock()
	past := r.Clone(context.Background()) // what serves the request may change it
	past.Body = nil                       // for others to have the memory
	s.requests = append(s.requests, past)
	for _, f := range s.faults {
		if f.left != 0 && f.match(r) {
			f.left--
			return f
		}
	}
	return nil
}

// serve answers as Azure would where Azurite does not.
func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	if strings.HasPrefix(r.URL.Path, "/"+Tenant+"/") {
		s.serveLogin(w, r)
		return
	}
	switch bearer, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer "); {
	case ok && (bearer != token || s.isRevoked()):
		answer(w, http.StatusUnauthorized, "InvalidAuthenticationInfo")
		return
	case Copies(r):
		s.signSource(r)
		if r.URL.Query().Get("comp") == "block" {
			s.stageCopy(w, r)
			return
		}
		s.sign(r)
	case ok, Listings(r) && s.Page > 0:
		s.sign(r)
	}
	s.upstream.ServeHTTP(w, r)
}

// sign puts the owner's signature in place of the client's, so that the request may be changed.
func (s *Server) sign(r *http.Request) {
	r.Header.Del("Authorization")
	q := r.URL.Query()
	for name, values := range s.signed {
		q[name] = values
	}
	if n, err := strconv.Atoi(q.Get("maxresults")); Listings(r) && s.Page > 0 && (err != nil || n > s.Page) {
		q.Set("maxresults", strconv.Itoa(s.Page))
	}
	r.URL.RawQuery = q.Encode()
}

// signSource does the same for the source of a copy, which Azurite takes from itself alone.
func (s *Server) signSource(r *http.Request) {
	from, err := url.Parse(r.Header.Get("X-Ms-Copy-Source"))
	if err != nil {
		return
	}
	from.Scheme, from.Host = s.at.Scheme, s.at.Host
	if r.Header.Get("X-Ms-Copy-Source-Authorization") == "Bearer "+token {
		r.Header.Del("X-Ms-Copy-Source-Authorization")
		from.RawQuery = s.SAS()
	}
	r.Header.Set("X-Ms-Copy-Source", from.String())
}

// stageCopy asks for a block in the owner's name: a signature that is not for the one request Azurite takes for all
// requests but this.
func (s *Server) stageCopy(w http.ResponseWriter, r *http.Request) {
	segments := strings.SplitN(r.URL.Path, "/", 4) // "", account, container, blob
	opts := &blockblob.StageBlockFromURLOptions{SourceModifiedAccessConditions: &blob.SourceModifiedAccessConditions{}}
	if tag := azcore.ETag(r.Header.Get("X-Ms-Source-If-Match")); tag != "" {
		opts.SourceModifiedAccessConditions.SourceIfMatch = &tag
	}
	var last int64
	if _, err := fmt.Sscanf(r.Header.Get("X-Ms-Source-Range"), "bytes=%d-%d", &opts.Range.Offset, &last); err == nil {
		opts.Range.Count = last - opts.Range.Offset + 1
	}
	_, err := s.blob(segments[2], segments[3]).StageBlockFromURL(r.Context(), r.URL.Query().Get("blockid"), r.Header.Get("X-Ms-Copy-Source"), opts)
	var said *azcore.ResponseError
	switch {
	case err == nil:
		w.WriteHeader(http.StatusCreated)
	case errors.As(err, &said):
		answer(w, said.StatusCode, said.ErrorCode)
	default:
		panic(http.ErrAbortHandler)
	}
}

// What a service principal of the tests is called.
const (
	Tenant       = "9f0c6a4e-6a0a-4d7b-9d7b-000000000001"
	Client       = "9f0c6a4e-6a0a-4d7b-9d7b-000000000002"
	ClientSecret = "azuretest-client-secret"

	token = "azuretest-access-token"
)

// Login is where the service principal gets its tokens.
func (s *Server) Login() string { return s.http.URL + "/" }

// Identity is where a machine with a managed identity gets them, by showing ClientSecret as its header: the two that App
// Service and Functions put into IDENTITY_ENDPOINT and IDENTITY_HEADER.
func (s *Server) Identity() string { return s.http.URL + "/" + Tenant + "/identity" }

// Revoke has the server give no more tokens, and take none.
func (s *Server) Revoke() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.revoked = true
}

func (s *Server) isRevoked() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.revoked
}

func (s *Server) serveLogin(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	root := s.http.URL + "/" + Tenant
	var said map[string]any
	switch {
	case strings.HasSuffix(r.URL.Path, "/identity"):
		if r.Header.Get("X-Identity-Header") != ClientSecret || r.URL.Query().Get("resource") != "https://storage.azure.com" || s.isRevoked() {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		said = map[string]any{"access_token": token, "token_type": "Bearer", "expires_on": fmt.Sprint(time.Now().Add(time.Hour).Unix())}
	case strings.HasSuffix(r.URL.Path, "/openid-configuration"):
		said = map[string]any{
			"issuer": root + "/v2.0", "token_endpoint": root + "/oauth2/v2.0/token",
			"authorization_endpoint": root + "/oauth2/v2.0/authorize",
		}
	case r.FormValue("client_secret") != ClientSecret || r.FormValue("client_id") != Client || s.isRevoked():
		w.WriteHeader(http.StatusUnauthorized)
		said = map[string]any{
			"error": "invalid_client", "error_codes": []int{7000215},
			"error_description": "AADSTS7000215: Invalid client secret provided. Trace ID: 00000000-0000-0000-0000-000000000000",
		}
	default:
		said = map[string]any{"access_token": token, "token_type": "Bearer", "expires_in": 3600}
	}
	_ = json.NewEncoder(w).Encode(said)
}
