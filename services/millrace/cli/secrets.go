package cli

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"millrace/services/admin"
	"millrace/services/millrace"
	"millrace/shared/secret"
)

type secretsCommand struct {
	Rotate secretsRotate `cmd:"" help:"Replace the key, and seal everything with the new one, while all services run. May be interrupted and repeated."`
	Key    secretsKey    `cmd:"" help:"Print a key file, or what it becomes by one step of a rotation, for those who do not share a file."`
	Reseal secretsReseal `cmd:"" help:"Seal everything with the key that seals now. The last thing before an old key is dropped."`
}

// sealing is an operator with the deployment's keys.
type sealing struct {
	operator       `embed:""`
	SecretsKey     string `help:"The key file (default: secrets.key in the data folder)." placeholder:"FILE" type:"path"`
	SecretsKeyData string `help:"The content of a key file, in place of one." placeholder:"KEY" secret:"yes"`
}

func (s sealing) file() string {
	if s.SecretsKey != "" {
		return s.SecretsKey
	}
	return filepath.Join(s.Data, millrace.KeyFile)
}

// keeper opens the keys as the services have them.
func (s sealing) keeper() (*secret.Keeper, error) {
	if s.SecretsKeyData != "" {
		return secret.Parse(s.SecretsKeyData)
	}
	return secret.Load(s.file(), false)
}

// reseal seals everything again, in as many passes as it takes.
func (s sealing) reseal(ctx context.Context) (sum admin.Resealed, err error) {
	var pass func() (admin.Resealed, error)
	if s.NATSURL == "" {
		door, err := s.door()
		if err != nil {
			return sum, err
		}
		pass = func() (r admin.Resealed, err error) {
			return r, door.Do(ctx, http.MethodPost, "/operator/secrets/reseal", nil, &r)
		}
	} else {
		keeper, err := s.keeper()
		if err != nil {
			return sum, err
		}
		b, closed, err := s.broker("secrets")
		if err != nil {
			return sum, err
		}
		defer closed()
		pass = func() (admin.Resealed, error) { return admin.Reseal(ctx, b, keeper) }
	}
	for {
		r, err := pass()
		if err != nil {
			return sum, err
		}
		sum.Renewed += r.Renewed
		sum.Sealed, sum.Lost, sum.More = r.Sealed, r.Lost, r.More
		if r.Renewed == 0 && !r.More {
			return sum, nil
		}
	}
}

func (s sealing) show(r admin.Resealed) error {
	if s.Output == "json" {
		return showJSON(r)
	}
	fmt.Printf("%d secrets are sealed with the current key, %d of them anew.\n", r.Sealed, r.Renewed)
	for _, l := range r.Lost {
		fmt.Printf("No key opens the %s. Give its credentials again, or delete it.\n", l)
	}
	return nil
}

type secretsReseal struct {
	sealing `embed:""`
}

// Run seals everything again.
func (c *secretsReseal) Run(ctx context.Context) error {
	r, err := c.reseal(ctx)
	if err != nil {
		return err
	}
	return c.show(r)
}

type secretsKey struct {
	New            bool   `help:"Make a new key, in place of changing one." xor:"step"`
	Step           string `help:"add, promote or drop. After each of the first two all services must get the result before the next; before drop, run reseal." enum:",add,promote,drop" default:"" placeholder:"STEP" xor:"step"`
	KMS            string `name:"kms" help:"Have a key management service encrypt it: aws-kms://arn:aws:kms:REGION:ACCOUNT:key/ID or gcp-kms://projects/P/locations/L/keyRings/R/cryptoKeys/K. Services that are given the result, with --secrets-key or --secrets-key-data, need the right to decrypt with that key." placeholder:"URI"`
	SecretsKey     string `help:"The key file." placeholder:"FILE" type:"path"`
	SecretsKeyData string `help:"Its content, in place of a file." placeholder:"KEY" secret:"yes"`
}

// Run prints the content of a key file on one line.
func (c *secretsKey) Run(ctx context.Context) (err error) {
	content := []byte(c.SecretsKeyData)
	switch {
	case c.New:
		content, err = secret.NewKeys()
	case len(content) == 0 && c.SecretsKey == "":
		return errors.New("name a file with --secrets-key, set MILLRACE_SECRETS_KEY_DATA, or make a key with --new")
	case len(content) == 0:
		content, err = secret.Content(c.SecretsKey)
	}
	if err == nil && c.Step != "" {
		content, _, err = secret.Step(c.Step).Take(content)
	}
	if err == nil && c.KMS != "" {
		content, err = secret.Wrap(ctx, content, c.KMS)
	}
	if err == nil {
		_, err = secret.StateOf(content)
	}
	if err != nil {
		return err
	}
	_, err = fmt.Println(string(content))
	return err
}

type secretsRotate struct {
	sealing `embed:""`
	Grace   time.Duration `help:"How long the old key is kept at least after the new one seals: for requests under way, and file systems that show a change late." default:"1m"`
	Keep    bool          `help:"Leave the old key in the file. The next rotation drops it."`
}

// Run replaces the key. Where an earlier run was interrupted it goes on: what there is to do shows in the file.
func (c *secretsRotate) Run(ctx context.Context) error {
	if c.SecretsKeyData != "" {
		return errors.New("what the environment holds cannot be replaced from here: see `millrace secrets key --help`")
	}
	path := c.file()
	content, err := secret.Content(path)
	if err != nil {
		return err
	}
	state, err := secret.StateOf(content)
	if err != nil {
		return err
	}
	if state.Keys == 1 {
		if _, err := secret.Rotate(path, secret.Add); err != nil {
			return err
		}
	} else {
		fmt.Fprintln(os.Stderr, "Going on with a rotation that did not come to its end.")
	}
	if _, err := secret.Rotate(path, secret.Promote); err != nil {
		return err
	}
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	done, err := c.reseal(ctx)
	if err != nil {
		return fmt.Errorf("the new key seals and the old one still opens; run this again: %w", err)
	}
	if c.Keep {
		return c.show(done)
	}
	select { // whatever was being sealed with the old key is stored by then
	case <-time.After(time.Until(info.ModTime().Add(c.Grace))):
	case <-ctx.Done():
		return ctx.Err()
	}
	late, err := c.reseal(ctx)
	if err != nil {
		return fmt.Errorf("the new key seals and the old one still opens; run this again: %w", err)
	}
	late.Renewed += done.Renewed
	if _, err := secret.Rotate(path, secret.Drop); err != nil {
		return err
	}
	return c.show(late)
}
