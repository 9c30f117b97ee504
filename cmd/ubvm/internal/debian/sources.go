// Package debian talks to a Debian archive without touching the host's own apt state: it finds the
// mirror the host already uses, keeps private package lists, resolves kernels and downloads packages.
package debian

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// MirrorEnv overrides the mirror found in the host's apt configuration.
const MirrorEnv = "UBCACHE_DEBIAN_MIRROR"

// A Source is one entry of an apt configuration, reduced to what choosing a mirror needs.
type Source struct {
	URIs       []string
	Suites     []string
	Components []string
}

// Mirror returns the URI of a full Debian archive, from [MirrorEnv] or from the apt configuration
// in etc (normally /etc/apt).
func Mirror(etc string) (string, error) {
	if uri := os.Getenv(MirrorEnv); uri != "" {
		return strings.TrimSuffix(uri, "/"), nil
	}
	sources, err := readSources(etc)
	if err != nil {
		return "", err
	}
	uri, err := chooseMirror(sources)
	if err != nil {
		return "", fmt.Errorf("%w in %s: set %s", err, etc, MirrorEnv)
	}
	return resolveMirrorFile(uri)
}

func readSources(etc string) ([]Source, error) {
	var sources []Source
	oneLine, _ := filepath.Glob(filepath.Join(etc, "sources.list.d", "*.list"))
	oneLine = append([]string{filepath.Join(etc, "sources.list")}, oneLine...)
	for _, name := range oneLine {
		text, err := os.ReadFile(name)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read apt sources: %w", err)
		}
		sources = append(sources, parseOneLine(string(text))...)
	}
	deb822, _ := filepath.Glob(filepath.Join(etc, "sources.list.d", "*.sources"))
	for _, name := range deb822 {
		text, err := os.ReadFile(name)
		if err != nil {
			return nil, fmt.Errorf("read apt sources: %w", err)
		}
		sources = append(sources, parseDeb822(string(text))...)
	}
	return sources, nil
}

// parseOneLine reads the traditional sources.list format: deb [options] uri suite component…
func parseOneLine(text string) []Source {
	var sources []Source
	lines := bufio.NewScanner(strings.NewReader(text))
	for lines.Scan() {
		line, _, _ := strings.Cut(lines.Text(), "#")
		rest, ok := strings.CutPrefix(strings.TrimSpace(line), "deb")
		if !ok || rest == "" || (rest[0] != ' ' && rest[0] != '\t') {
			continue
		}
		rest = strings.TrimSpace(rest)
		if strings.HasPrefix(rest, "[") {
			_, after, ok := strings.Cut(rest, "]")
			if !ok {
				continue
			}
			rest = after
		}
		f := strings.Fields(rest)
		if len(f) < 2 {
			continue
		}
		sources = append(sources, Source{URIs: f[:1], Suites: f[1:2], Components: f[2:]})
	}
	return sources
}

// parseDeb822 reads the stanzas of a .sources file.
func parseDeb822(text string) []Source {
	var sources []Source
	for _, stanza := range stanzas(text) {
		if !slices.Contains(strings.Fields(stanza["types"]), "deb") ||
			strings.EqualFold(strings.TrimSpace(stanza["enabled"]), "no") {
			continue
		}
		sources = append(sources, Source{
			URIs:       strings.Fields(stanza["uris"]),
			Suites:     strings.Fields(stanza["suites"]),
			Components: strings.Fields(stanza["components"]),
		})
	}
	return sources
}

// stanzas splits RFC 822 style text into paragraphs of lower-case field name to value.
func stanzas(text string) []map[string]string {
	var all []map[string]string
	current, last := map[string]string{}, ""
	flush := func() {
		if len(current) > 0 {
			all = append(all, current)
		}
		current, last = map[string]string{}, ""
	}
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\r\n")
		switch {
		case strings.HasPrefix(line, "#"):
		case strings.TrimSpace(line) == "":
			flush()
		case line[0] == ' ' || line[0] == '\t':
			if last != "" {
				current[last] += "\n" + strings.TrimSpace(line)
			}
		default:
			name, value, ok := strings.Cut(line, ":")
			if !ok {
				continue
			}
			last = strings.ToLower(name)
			current[last] = strings.TrimSpace(value)
		}
	}
	flush()
	return all
}

// debianSuites are names under which an archive may offer Debian itself. Security, updates and
// backports suites are not among them: their archives need not hold the others.
var debianSuites = []string{
	"bookworm", "trixie", "forky", "sid", "oldstable", "stable", "testing", "unstable",
}

// chooseMirror picks the first archive that offers a Debian release, if possible one whose address
// looks like Debian's: other publishers also call their suites so.
func chooseMirror(sources []Source) (string, error) {
	var others []string
	for _, s := range sources {
		offers := slices.ContainsFunc(s.Suites, func(suite string) bool {
			return slices.Contains(debianSuites, suite)
		})
		if !offers || !slices.Contains(s.Components, "main") {
			continue
		}
		for _, uri := range s.URIs {
			uri = strings.TrimSuffix(uri, "/")
			if strings.HasSuffix(uri, "/debian") || strings.HasPrefix(uri, "mirror+file:") {
				return uri, nil
			}
			others = append(others, uri)
		}
	}
	if len(others) == 0 {
		return "", errors.New("no Debian mirror")
	}
	return others[0], nil
}

// resolveMirrorFile turns mirror+file:/path, which cloud images use and debootstrap cannot read,
// into the file's first URI.
func resolveMirrorFile(uri string) (string, error) {
	name, ok := strings.CutPrefix(uri, "mirror+file:")
	if !ok {
		return uri, nil
	}
	text, err := os.ReadFile(strings.TrimPrefix(name, "//"))
	if err != nil {
		return "", fmt.Errorf("read mirror list: %w: set %s", err, MirrorEnv)
	}
	for line := range strings.Lines(string(text)) {
		line, _, _ = strings.Cut(line, "#")
		if f := strings.Fields(line); len(f) > 0 {
			return strings.TrimSuffix(f[0], "/"), nil
		}
	}
	return "", fmt.Errorf("mirror list %s is empty: set %s", name, MirrorEnv)
}
