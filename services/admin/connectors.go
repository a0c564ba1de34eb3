package admin

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"millrace/shared/bucket"
	"millrace/shared/bucket/dir"
	conn "millrace/shared/connector"
	"millrace/shared/event"
	"millrace/shared/store"
)

// What a connector can be used for, and how it is doing.
const (
	scopeImport = "import"
	scopeExport = "export"

	connectorActive   = store.ConnectorActive
	connectorFailed   = store.ConnectorFailed
	connectorDisabled = store.ConnectorDisabled

	testSucceeded = "success"
	testFailed    = "failed"
)

// connector is a store.Connector as clients see it: every member always there, and no secret.
type connector struct {
	ID             string   `json:"connector_id"`
	Name           string   `json:"name"`
	Provider       string   `json:"provider" enum:"dir,gcs,s3,azure"`
	Status         string   `json:"status" enum:"active,testing,failed,disabled"`
	Scopes         []string `json:"scopes" nullable:"false"`
	ImportMode     string   `json:"import_mode" enum:"all,new_only"`
	ExportBasePath *string  `json:"export_base_path"`
	Path           *string  `json:"path" doc:"dir: the folder"`
	Poll           bool     `json:"poll" doc:"dir: it is walked now and then, whatever it is on"`
	Bucket         *string  `json:"bucket"`
	Region         *string  `json:"region"`
	Project        *string  `json:"gcp_project_id"`
	EndpointURL    *string  `json:"endpoint_url" doc:"gcs, s3, azure: a server other than the provider's own"`
	ForcePathStyle bool     `json:"force_path_style" doc:"s3: the bucket stands in the path and not in the host name"`
	UserProject    *string  `json:"user_project" doc:"gcs: the project that pays, where the requester does"`
	Subscription   *string  `json:"subscription" doc:"what notifications are pulled from. gcs: a Pub/Sub subscription; s3: the URL of an SQS queue"`
	StorageAccount *string  `json:"storage_account"`
	Container      *string  `json:"container"`
	CreatedAt      *string  `json:"created_at" format:"date-time"`
	UpdatedAt      *string  `json:"updated_at" format:"date-time"`
	LastTestedAt   *string  `json:"last_tested_at" format:"date-time"`
	LastTestResult *string  `json:"last_test_result" doc:"success or failed"`
	LastTestError  *string  `json:"last_test_error"`
}

func viewConnector(c store.Connector) connector {
	return connector{
		ID: c.ID, Name: c.Name, Provider: c.Provider, Status: c.Status,
		Scopes: append(make([]string, 0, len(c.Scopes)), c.Scopes...), ImportMode: string(c.ImportMode),
		ExportBasePath: orNull(c.ExportBasePath), Path: orNull(c.Path), Bucket: orNull(c.Bucket),
		Region: orNull(c.Region), StorageAccount: orNull(c.StorageAccount), Container: orNull(c.Container), ForcePathStyle: c.ForcePathStyle,
		Project: orNull(c.Project), UserProject: orNull(c.UserProject), Poll: c.Poll, EndpointURL: orNull(c.EndpointURL), Subscription: orNull(c.Subscription),
		CreatedAt: stampOrNull(c.CreatedAt), UpdatedAt: stampOrNull(c.UpdatedAt),
		LastTestedAt: stampOrNull(c.LastTestedAt), LastTestResult: orNull(c.LastTestResult), LastTestError: orNull(c.LastTestError),
	}
}

type connectorPath struct {
	ID string `path:"connector_id"`
}

type newDirConnector struct {
	Body struct {
		Name           string   `json:"name" minLength:"1" maxLength:"100"`
		Path           string   `json:"path" minLength:"1" maxLength:"4096" doc:"a folder inside one of the --allow-dir roots"`
		Scopes         []string `json:"scopes,omitempty" enum:"import,export" nullable:"true" doc:"default [\"import\"]"`
		ImportMode     string   `json:"import_mode,omitempty" enum:"all,new_only" default:"all"`
		ExportBasePath string   `json:"export_base_path,omitempty" maxLength:"1024"`
		Poll           bool     `json:"poll,omitempty" doc:"walk the folder now and then in place of waiting for events, as network mounts need, which are recognised"`
	}
}

type connectorTest struct {
	Success      bool       `json:"success"`
	ErrorMessage *string    `json:"error_message" doc:"what failed, and what to do about it"`
	Steps        []testStep `json:"steps" nullable:"false" doc:"what was tried, in order, up to the first step that failed"`
}

// testStep is one thing that a connector test tries.
type testStep struct {
	What  string `json:"what" doc:"what was tried, and with what"`
	OK    bool   `json:"ok"`
	Found string `json:"found" doc:"what came of it: an object, or why there is none, or what went wrong and what to do about it"`
}

type browseConnector struct {
	ID   string `path:"connector_id"`
	Body struct {
		Prefix    string `json:"prefix,omitempty" doc:"what keys must begin with; not a folder, may be a whole key"`
		Pattern   string `json:"pattern,omitempty" doc:"a glob: * ? [a-z] ** {a,b}; without / it is matched against the base name. Default *"`
		Recursive *bool  `json:"recursive,omitempty" default:"true" nullable:"true" doc:"false: nothing below the next / after the prefix"`
		Limit     int    `json:"limit,omitempty" minimum:"1" maximum:"1000" default:"1000"`
	}
}

type cloudFile struct {
	Path         string  `json:"path" doc:"the full key"`
	Name         string  `json:"name" doc:"the last segment of the key"`
	SizeBytes    int64   `json:"size_bytes"`
	LastModified string  `json:"last_modified" format:"date-time"`
	ContentType  *string `json:"content_type"`
	Extension    string  `json:"extension" doc:"lower case, without a dot; empty if there is none"`
}

func (a *Admin) connectorRoutes() {
	const tag = "Connectors"
	register(a, route{
		method: "POST", path: "/connectors/dir", scope: write, status: http.StatusCreated, tag: tag,
		summary: "Connect a folder", about: "The folder must lie inside one of the roots given to the server with --allow-dir.",
	}, a.createDir)
	register(a, gcsRoute(tag), a.createGCS)
	a.notifyRoute(tag)
	register(a, route{method: "GET", path: "/connectors", scope: read, tag: tag, summary: "List connectors", about: "In order of creation."}, a.listConnectors)
	register(a, route{method: "GET", path: "/connectors/{connector_id}", scope: read, tag: tag, summary: "Get a connector"}, a.getConnector)
	register(a, route{
		method: "POST", path: "/connectors/{connector_id}/test", scope: write, tag: tag, timeout: testTimeout + requestTimeout,
		summary: "Test a connector", about: "Opens the storage, lists it, reads a byte, writes and deletes a small object below export_base_path where the connector has the scope export, and says which of these steps failed, and why. 200 whether that works or not; the outcome is also stored with the connector.",
	}, a.testConnector)
	register(a, route{
		method: "POST", path: "/connectors/{connector_id}/browse", scope: read, tag: tag, timeout: browseTimeout,
		summary: "List objects of a connector", about: "With the matching that import jobs and automations use.",
	}, a.browse)
}

func (a *Admin) createDir(ctx context.Context, in *newDirConnector) (*body[connector], error) {
	clean, err := a.deps.Sources.CheckDir(in.Body.Path)
	if err != nil {
		return nil, invalid("path", "%s", err)
	}
	return a.createConnector(ctx, store.Connector{
		ID: newID(ctx, "conn"), Name: in.Body.Name, Provider: "dir", Path: clean, Poll: in.Body.Poll, Mount: dir.IsMount(clean),
		Scopes: scopesOr(in.Body.Scopes), ImportMode: event.ImportMode(in.Body.ImportMode), ExportBasePath: in.Body.ExportBasePath,
	})
}

// createConnector stores a new connector, untested: whether it works is for a test to say, so that a storage that is
// away for a minute does not stand in the way of configuring it.
func (a *Admin) createConnector(ctx context.Context, c store.Connector) (*body[connector], error) {
	if _, err := conn.CheckExportPath(c.ExportBasePath); err != nil && c.HasScope(scopeExport) {
		return nil, invalid("export_base_path", "%s", err)
	}
	c.Status = connectorActive
	c.CreatedAt = time.Now().UTC()
	c.UpdatedAt = c.CreatedAt
	c, err := create(ctx, a.connectors, c.ID, c)
	if err != nil {
		return nil, err
	}
	return &body[connector]{viewConnector(c)}, nil
}

func scopesOr(given []string) []string {
	if len(given) == 0 {
		return []string{scopeImport}
	}
	scopes := make([]string, 0, len(given))
	for _, s := range given { // in the order given, as a client may compare lists
		if !slices.Contains(scopes, s) {
			scopes = append(scopes, s)
		}
	}
	return scopes
}

func (a *Admin) listConnectors(ctx context.Context, _ *none) (*body[[]connector], error) {
	found, err := all(ctx, a.connectors)
	if err != nil {
		return nil, err
	}
	slices.SortFunc(found, func(x, y store.Connector) int {
		return cmp.Or(x.CreatedAt.Compare(y.CreatedAt), cmp.Compare(x.ID, y.ID))
	})
	list := make([]connector, 0, len(found))
	for _, c := range found {
		list = append(list, viewConnector(c))
	}
	return &body[[]connector]{list}, nil
}

func (a *Admin) getConnector(ctx context.Context, in *connectorPath) (*body[connector], error) {
	c, err := lookUp(ctx, a.connectors, "connector", in.ID)
	if err != nil {
		return nil, err
	}
	return &body[connector]{viewConnector(c)}, nil
}

// importable returns a connector that jobs may import from, or says why not.
func (a *Admin) importable(ctx context.Context, id string) (store.Connector, error) {
	c, err := lookUp(ctx, a.connectors, "connector", id)
	switch {
	case err != nil:
		return c, err
	case c.Status == connectorDisabled:
		return c, disabled(id)
	case !c.HasScope(scopeImport):
		return c, newProblem(http.StatusConflict, "connector_scope_missing", "The connector %s lacks the scope import.", id).
			with("connector_id", id).with("required_scope", scopeImport)
	}
	return c, nil
}

func disabled(id string) error {
	return newProblem(http.StatusConflict, "connector_disabled", "The connector %s is disabled.", id).with("connector_id", id)
}

// testTimeout bounds a connector test. It is shorter than what clients wait, so that they hear what was wrong.
const testTimeout = 20 * time.Second

func (a *Admin) testConnector(ctx context.Context, in *connectorPath) (*body[connectorTest], error) {
	c, err := lookUp(ctx, a.connectors, "connector", in.ID)
	if err != nil {
		return nil, err
	}
	steps := a.try(ctx, c)
	failure := failureOf(steps)
	now := time.Now().UTC()
	_, _, err = a.connectors.Modify(ctx, c.ID, func(c *store.Connector) error {
		if c.ID == "" {
			return notFound("connector", in.ID) // deleted meanwhile
		}
		c.LastTestedAt, c.LastTestResult, c.LastTestError = now, testSucceeded, failure
		status := connectorActive
		if failure != "" {
			c.LastTestResult, status = testFailed, connectorFailed
		}
		if c.Status != connectorDisabled {
			c.Status = status
		}
		c.UpdatedAt = now
		return nil
	})
	if err != nil {
		return nil, err
	}
	return &body[connectorTest]{connectorTest{Success: failure == "", ErrorMessage: orNull(failure), Steps: steps}}, nil
}

// try opens the storage afresh, lists up to one object, reads a byte of it, and writes where exports would go, as far as the
// scopes say that this is wanted; it returns what it did, up to the first step that failed.
func (a *Admin) try(ctx context.Context, c store.Connector) []testStep {
	ctx, cancel := context.WithTimeout(ctx, testTimeout)
	defer cancel()
	steps := a.tryReading(ctx, c)
	if c.HasScope(scopeExport) && steps[len(steps)-1].OK {
		steps = append(steps, a.tryWriting(ctx, c))
	}
	return steps
}

// writeStep is what the step begins with that writes.
const writeStep = "write an object"

func (a *Admin) tryWriting(ctx context.Context, c store.Connector) testStep {
	key, left, err := a.deps.Sources.TryWriting(ctx, c)
	step := testStep{What: fmt.Sprintf("%s below the export path, %q, and delete it again", writeStep, key)}
	switch {
	case err != nil:
		return step.failed(writeRemedy(c, err))
	case left:
		return step.worked("it was written and cannot be deleted, which exports do not need: it is still there")
	}
	return step.worked("exports can be written")
}

// writeRemedy is remedy for what was refused to be written.
func writeRemedy(c store.Connector, err error) string {
	right := map[string]string{
		"gcs": "the role roles/storage.objectUser", "s3": "the action s3:PutObject", "azure": "the role Storage Blob Data Contributor",
	}[c.Provider]
	if bucket.ClassOf(err) != bucket.ClassPermission || right == "" {
		return remedy(c, err)
	}
	return fmt.Sprintf("The credentials do not allow writing to the %s: give them %s on it, or take the scope export from the connector. (%s)",
		placeOf(c), right, shortened(err.Error()))
}

func (a *Admin) tryReading(ctx context.Context, c store.Connector) []testStep {
	open := testStep{What: "open the " + placeOf(c) + " with the connector's credentials"}
	src, err := a.deps.Sources.Open(ctx, c)
	if err != nil {
		return []testStep{open.failed(remedy(c, err))}
	}
	defer func() { _ = src.Close() }()
	list := testStep{What: "list it"}
	var some bucket.Object
	for o, err := range src.List(ctx, bucket.ListOptions{}) {
		if err != nil && elsewhere(o, err) {
			continue
		}
		if err != nil {
			return []testStep{open.worked("they are well-formed"), list.failed(remedy(c, err))}
		}
		some = o
		break
	}
	steps := []testStep{open.worked("they are well-formed"), list.worked("the first object is " + shortened(strconv.Quote(some.Path)))}
	if some.Path == "" {
		steps[1].Found = "it is empty, so there is nothing to read"
	}
	if some.Path == "" || !c.HasScope(scopeImport) { // or nobody who wants to
		return steps
	}
	read := testStep{What: fmt.Sprintf("read a byte of %q", shortened(some.Path))}
	err = readByte(ctx, src, some)
	switch class := bucket.ClassOf(err); {
	case err == nil:
		return append(steps, read.worked("it can be read"))
	case class.Permanent() && !class.Bucketwide() && class != bucket.ClassPermission:
		return append(steps, read.worked("this object cannot be read, which says nothing of others: "+shortened(err.Error())))
	}
	return append(steps, read.failed(remedy(c, err)))
}

func (s testStep) worked(found string) testStep {
	s.OK, s.Found = true, found
	return s
}

func (s testStep) failed(why string) testStep {
	s.Found = why
	return s
}

// failureOf is what a test comes down to in one sentence, "" if it went well.
func failureOf(steps []testStep) string {
	switch last := steps[len(steps)-1]; {
	case last.OK:
		return ""
	case len(steps) < 3:
		return last.Found
	case strings.HasPrefix(last.What, writeStep):
		return "Could not " + last.What + ". " + last.Found
	default:
		return "Listing works, reading does not: could not " + last.What + ". " + last.Found
	}
}

func readByte(ctx context.Context, src bucket.Source, o bucket.Object) error {
	r, err := src.Open(ctx, o.Path, o.Version, 0, 1)
	if err != nil {
		return err
	}
	_, err = io.ReadAll(r)
	return errors.Join(err, r.Close())
}

// elsewhere reports whether an error of a listing is about one sub-folder alone; see bucket.Source.
func elsewhere(o bucket.Object, err error) bool {
	return errors.Is(err, bucket.ErrUnreadable) && strings.HasSuffix(o.Path, "/")
}

// placeOf names what a connector leads to.
func placeOf(c store.Connector) string {
	switch c.Provider {
	case "dir":
		return fmt.Sprintf("folder %q", c.Path)
	case "azure":
		return fmt.Sprintf("container %q of the storage account %q", c.Container, c.StorageAccount)
	}
	return fmt.Sprintf("bucket %q", c.Bucket)
}

// remedy says what went wrong with a connector's storage and what to do about it.
func remedy(c store.Connector, err error) string {
	place := placeOf(c)
	say := func(format string, args ...any) string {
		return fmt.Sprintf(format, args...) + " (" + shortened(err.Error()) + ")"
	}
	if errors.Is(err, conn.ErrEndpoint) {
		return say("The endpoint of the %s is in a private network: whoever runs this server can allow it with --allow-endpoint.", place)
	}
	switch bucket.ClassOf(err) {
	case bucket.ClassUnsupported:
		return say("The %s cannot be used here.", place)
	case bucket.ClassNoBucket:
		if c.Provider == "dir" {
			return say("The %s does not exist: create it, or make a connector for another one.", place)
		}
		return say("The %s does not exist: create it, or make a connector with the right name.", place)
	case bucket.ClassPermission:
		if c.Provider == "dir" {
			return say("The %s cannot be read by the user this server runs as: change its permissions.", place)
		}
		switch c.Provider {
		case "s3":
			return say("The credentials do not allow this in the %s: add the action that is named to the policy of the user or role; "+
				"if the bucket is another account's, its own policy has to allow it as well.", place)
		case "azure":
			return say("The credentials do not allow listing or reading the %s: give the service principal the role "+
				"Storage Blob Data Reader on it, and Storage Blob Data Contributor for exports.", place)
		}
		return say("The credentials do not allow this in the %s: give the service account the role roles/storage.objectViewer on it; "+
			"if the bucket is in another project than %q, its owner there has to.", place, c.Project)
	case bucket.ClassCredentials:
		switch c.Provider {
		case "s3":
			return say("The credentials were refused: make a new access key and change the connector to it.")
		case "azure":
			return say("The credentials were refused: make a new client secret, signature or key and change the connector to it.")
		}
		return say("The credentials were refused: make a new key for the service account and a connector with it.")
	case bucket.ClassTimeout, bucket.ClassStalled:
		return say("The storage of the %s did not answer in time: check the network and the endpoint, then test again.", place)
	case bucket.ClassUnavailable, bucket.ClassThrottled, bucket.ClassBroken:
		var unknown *net.DNSError
		if c.Provider == "azure" && errors.As(err, &unknown) && unknown.IsNotFound {
			return say("There is no storage account %q: check its name, or the endpoint.", c.StorageAccount)
		}
		return say("The storage of the %s cannot be reached now: check the network and the endpoint, then test again.", place)
	}
	return say("The %s cannot be listed.", place)
}

// maxCause bounds what is passed on of a provider's own words, in bytes.
const maxCause = 400

func shortened(s string) string {
	s = strings.Join(strings.Fields(s), " ")
	if len(s) <= maxCause {
		return s
	}
	return strings.ToValidUTF8(s[:maxCause], "") + "…"
}

// browseTimeout bounds a listing that finds little in a lot. Clients wait 60 seconds.
const browseTimeout = 50 * time.Second

func (a *Admin) browse(ctx context.Context, in *browseConnector) (*body[[]cloudFile], error) {
	c, err := lookUp(ctx, a.connectors, "connector", in.ID)
	if err != nil {
		return nil, err
	}
	if c.Status == connectorDisabled {
		return nil, disabled(c.ID)
	}
	selects, err := compilePattern("pattern", in.Body.Prefix, in.Body.Pattern, value(in.Body.Recursive, true))
	if err != nil {
		return nil, err
	}
	src, _, err := a.deps.Sources.Source(ctx, c.ID)
	if err != nil {
		return nil, storageUnavailable(c, err)
	}
	files := make([]cloudFile, 0, 16)
	for o, err := range src.List(ctx, bucket.ListOptions{Prefix: selects.Prefix(), Delimiter: !selects.Recursive()}) {
		if err != nil {
			if elsewhere(o, err) {
				continue
			}
			return nil, storageUnavailable(c, err)
		}
		if !selects.Match(o.Path) {
			continue
		}
		if files = append(files, viewFile(o)); len(files) == in.Body.Limit {
			break
		}
	}
	return &body[[]cloudFile]{files}, nil
}

func storageUnavailable(c store.Connector, err error) error {
	if errors.Is(err, store.ErrNotFound) { // deleted meanwhile
		return notFound("connector", c.ID)
	}
	return newProblem(http.StatusBadGateway, "connector_storage_unavailable", "%s", remedy(c, err)).with("connector_id", c.ID)
}

func viewFile(o bucket.Object) cloudFile {
	f := cloudFile{
		Path: o.Path, Name: path.Base(o.Path), SizeBytes: o.Size, LastModified: stamp(o.ModTime),
		Extension: strings.ToLower(strings.TrimPrefix(path.Ext(o.Path), ".")),
	}
	f.ContentType = orNull(cmp.Or(o.ContentType, mime.TypeByExtension("."+f.Extension)))
	return f
}
