package azure_test

import (
	"bytes"
	"context"
	"net/url"
	"os"
	"strings"
	"testing"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/streaming"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blockblob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"

	"millrace/shared/bucket/azure"
	"millrace/shared/bucket/buckettest"
)

// MILLRACE_TEST_AZURE=az://ACCOUNT/CONTAINER, and endpoint=URL for another place, with the key of the account in
// AZURE_STORAGE_KEY.
func TestCloud(t *testing.T) {
	features := buckettest.Features{Newlines: true, Slashes: true, Copies: true}
	buckettest.Cloud(t, "MILLRACE_TEST_AZURE", features, func(t *testing.T, place *url.URL) buckettest.Fixture {
		cfg := azure.Config{
			Account: place.Host, Container: strings.Trim(place.Path, "/"), Endpoint: place.Query().Get("endpoint"),
			Credentials: azure.Credentials{AccountKey: os.Getenv("AZURE_STORAGE_KEY")},
		}
		endpoint := cfg.Endpoint
		if endpoint == "" {
			endpoint = "https://" + cfg.Account + ".blob.core.windows.net"
		}
		key, err := container.NewSharedKeyCredential(cfg.Account, cfg.Credentials.AccountKey)
		if err != nil {
			t.Fatal(err)
		}
		owner, err := container.NewClientWithSharedKeyCredential(endpoint+"/"+cfg.Container, key, nil)
		if err != nil {
			t.Fatal(err)
		}
		src, err := azure.NewSource(cfg)
		if err != nil {
			t.Fatal(err)
		}
		cfg.Prefix = "library"
		lib, err := azure.NewLibrary(cfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { src.Close(); lib.Close() })
		return buckettest.Fixture{
			Source: src, Library: lib,
			Write: func(t testing.TB, path string, data []byte) {
				_, err := owner.NewBlockBlobClient(path).Upload(context.Background(), streaming.NopCloser(bytes.NewReader(data)),
					&blockblob.UploadOptions{HTTPHeaders: &blob.HTTPHeaders{BlobContentType: to.Ptr("video/mp4")}})
				if err != nil {
					t.Fatalf("put %q: %v", path, err)
				}
			},
			Remove: func(t testing.TB, path string) {
				_, err := owner.NewBlobClient(path).Delete(context.Background(), nil)
				if err != nil && !bloberror.HasCode(err, bloberror.BlobNotFound) {
					t.Fatalf("delete %q: %v", path, err)
				}
			},
		}
	})
}
