package worker

import (
	"fmt"
	"net/url"
	"path/filepath"
	"strings"
)

// Media knows which media are files on this machine.
type Media interface {
	// Path returns the absolute path of the file a URI stands for, false if it is to be read by its URI.
	Path(uri string) (string, bool)
}

// Folders are the local folders that media may lie in, such as the library. Files elsewhere, and anything that is not
// a file:// URI, are left to their URI.
type Folders []string

// NewFolders makes the paths absolute. No folders at all is fine: every medium is then passed by its URI.
func NewFolders(paths ...string) (Folders, error) {
	var f Folders
	for _, p := range paths {
		abs, err := filepath.Abs(p)
		if err != nil {
			return nil, fmt.Errorf("folder of media %s: %w", p, err)
		}
		f = append(f, abs)
	}
	return f, nil
}

// Path implements Media.
func (f Folders) Path(uri string) (string, bool) {
	u, err := url.Parse(uri)
	if err != nil || u.Scheme != "file" || u.Host != "" || !strings.HasPrefix(u.Path, "/") || strings.ContainsRune(u.Path, 0) {
		return "", false
	}
	path := filepath.FromSlash(u.Path)
	for _, folder := range f {
		if rel, err := filepath.Rel(folder, path); err == nil && rel != "." && filepath.IsLocal(rel) {
			return filepath.Join(folder, rel), true
		}
	}
	return "", false
}
