package cli

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/alecthomas/kong"
)

type completionCommand struct {
	Shell string `arg:"" help:"bash, zsh or fish." enum:"bash,zsh,fish"`
}

// The scripts ask this program at each key, so that they never know less than it does. Where it has nothing to say,
// shells complete files.
var completionScripts = map[string]string{
	"bash": `# source <(millrace completion bash)
_millrace() {
	local IFS=$'\n'
	COMPREPLY=($(millrace complete -- "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null | cut -f1))
}
complete -o default -F _millrace millrace
`,
	"zsh": `#compdef millrace
# source <(millrace completion zsh)
_millrace() {
	local -a found
	local line
	while IFS=$'\t' read -r line about; do
		found+=("${line//:/\\:}${about:+:$about}")
	done < <(millrace complete -- "${(@)words[2,CURRENT]}" 2>/dev/null)
	if (( $#found )); then _describe millrace found; else _files; fi
}
compdef _millrace millrace
`,
	"fish": `# millrace completion fish | source
function __millrace
	millrace complete -- (commandline -opc)[2..] (commandline -ct) 2>/dev/null
end
complete -c millrace -n 'test (count (__millrace)) -gt 0' -f
complete -c millrace -a '(__millrace)'
`,
}

// Run prints a script.
func (c *completionCommand) Run() error {
	_, err := fmt.Print(completionScripts[c.Shell])
	return err
}

type completeCommand struct {
	Words []string `arg:"" optional:"" help:"The command line so far, without the program; the last word is the one to complete."`
}

// Run prints what may stand in place of the last word, a line each, with a remark behind a tab.
func (c *completeCommand) Run(k *kong.Kong) error {
	words := c.Words
	if len(words) > 0 && words[0] == "--" {
		words = words[1:]
	}
	return complete(os.Stdout, k.Model.Node, words)
}

// complete walks the command line down the commands and names what begins like its last word.
func complete(w io.Writer, at *kong.Node, words []string) error {
	last := ""
	if len(words) > 0 {
		last, words = words[len(words)-1], words[:len(words)-1]
	}
	flags := slices.Clone(at.Flags)
	var open *kong.Flag // whose value comes next
	places := 0         // arguments that were given
	for _, word := range words {
		switch {
		case open != nil:
			open = nil
		case strings.HasPrefix(word, "-"):
			open = valued(flags, word)
		default:
			if next := child(at, word); next != nil {
				at = next
				flags = append(flags, at.Flags...)
				continue
			}
			places++
		}
	}
	var found [][2]string
	add := func(text, about string) {
		if strings.HasPrefix(text, last) {
			about, _, _ = strings.Cut(strings.ReplaceAll(about, "\t", " "), "\n")
			found = append(found, [2]string{text, about})
		}
	}
	switch {
	case open != nil:
		addValues(add, "", open.Value)
	case strings.HasPrefix(last, "-"):
		if name, _, ok := strings.Cut(last, "="); ok {
			if f := valued(flags, name); f != nil {
				addValues(add, name+"=", f.Value)
			}
			break
		}
		for _, f := range flags {
			if !f.Hidden {
				add("--"+f.Name, f.Help)
			}
		}
	default:
		for _, c := range at.Children {
			if !c.Hidden {
				add(c.Name, c.Help)
			}
		}
		if places < len(at.Positional) {
			addValues(add, "", at.Positional[places])
		}
	}
	slices.SortFunc(found, func(x, y [2]string) int { return cmp.Compare(x[0], y[0]) })
	for _, f := range found {
		if _, err := fmt.Fprintf(w, "%s\t%s\n", f[0], f[1]); err != nil {
			return err
		}
	}
	return nil
}

func child(at *kong.Node, name string) *kong.Node {
	for _, c := range at.Children {
		if c.Name == name {
			return c
		}
	}
	return nil
}

// valued is the flag that word names and that takes the next word as its value, or nil.
func valued(flags []*kong.Flag, word string) *kong.Flag {
	for _, f := range flags {
		if (word == "--"+f.Name || f.Short != 0 && word == "-"+string(f.Short)) && !f.IsBool() && !f.IsCounter() {
			return f
		}
	}
	return nil
}

// addValues adds the values of an enumeration.
func addValues(add func(text, about string), before string, v *kong.Value) {
	if v.Enum == "" {
		return
	}
	for _, value := range v.EnumSlice() {
		if value != "" {
			add(before+value, "")
		}
	}
}
