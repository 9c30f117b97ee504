package debian

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"ubcache/cmd/ubvm/internal/progress"
)

// Keyring verifies every index and package; the Debian package debian-archive-keyring holds it.
const Keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"

// Suites are the archive's parts that kernels and the root image come from.
var Suites = []string{"trixie", "trixie-backports"}

// Release is the suite of the root image.
const Release = "trixie"

// Apt is a private apt: own sources, lists and archives below one folder. Proxies and the like are
// still taken from the host's configuration.
type Apt struct {
	Dir    string
	Mirror string
}

// NewApt prepares the private folders and the sources entry.
func NewApt(dir, mirror string) (*Apt, error) {
	a := &Apt{Dir: dir, Mirror: mirror}
	for _, sub := range []string{"lists/partial", "archives/partial"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			return nil, fmt.Errorf("prepare private apt: %w", err)
		}
	}
	sources := fmt.Sprintf("Types: deb\nURIs: %s\nSuites: %s\nComponents: main\nSigned-By: %s\n",
		mirror, strings.Join(Suites, " "), Keyring)
	// Lists of another mirror are no good.
	if old, err := os.ReadFile(filepath.Join(dir, "ubvm.sources")); err == nil && string(old) != sources {
		_ = os.Remove(filepath.Join(dir, "updated"))
	}
	for name, text := range map[string]string{"ubvm.sources": sources, "status": "", "empty": ""} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return nil, fmt.Errorf("prepare private apt: %w", err)
		}
	}
	return a, nil
}

func (a *Apt) options() []string {
	o := func(key, value string) string { return "-o" + key + "=" + value }
	return []string{
		o("Dir::Etc::sourcelist", filepath.Join(a.Dir, "ubvm.sources")),
		o("Dir::Etc::sourceparts", "-"),
		o("Dir::Etc::preferences", filepath.Join(a.Dir, "empty")),
		o("Dir::Etc::preferencesparts", "-"),
		o("Dir::State", a.Dir),
		o("Dir::State::lists", filepath.Join(a.Dir, "lists")),
		o("Dir::State::status", filepath.Join(a.Dir, "status")),
		o("Dir::Cache", a.Dir),
		o("Dir::Cache::archives", filepath.Join(a.Dir, "archives")),
		o("APT::Architecture", "amd64"),
		o("APT::Sandbox::User", "root"),
		o("APT::Update::Post-Invoke::", ""),
		o("Acquire::Languages", "none"),
		o("Acquire::IndexTargets::deb::DEP-11::DefaultEnabled", "false"),
		o("Acquire::Retries", "3"),
		o("Dpkg::Use-Pty", "0"),
	}
}

func (a *Apt) command(ctx context.Context, tool string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, tool, append(a.options(), args...)...)
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8")
	return cmd
}

// Update refreshes the private package lists; signatures are verified by apt.
func (a *Apt) Update(ctx context.Context) error {
	defer progress.Start("refreshing package lists")()
	out, err := a.command(ctx, "apt-get", "-q", "--error-on=any", "update").CombinedOutput()
	if err != nil {
		return fmt.Errorf("refresh package lists from %s: %w: %s", a.Mirror, err, lastLine(out))
	}
	if err := os.RemoveAll(filepath.Join(a.Dir, "index.json")); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(a.Dir, "updated"), nil, 0o644)
}

// UpdateIfOlder refreshes the lists unless that was done less than age ago. Old lists are better
// than none: if a refresh fails and lists exist, it warns and goes on.
func (a *Apt) UpdateIfOlder(ctx context.Context, age time.Duration) error {
	info, err := os.Stat(filepath.Join(a.Dir, "updated"))
	if err == nil && time.Since(info.ModTime()) < age {
		return nil
	}
	uerr := a.Update(ctx)
	if uerr != nil && err == nil && ctx.Err() == nil {
		progress.Note("%v; going on with the lists of %s", uerr,
			info.ModTime().Format(time.DateTime))
		return nil
	}
	return uerr
}

// Packages returns the newest version of every package in the lists. Reading the lists takes
// seconds, so the answer is kept beside them until the next update.
func (a *Apt) Packages(ctx context.Context) (Index, error) {
	kept := filepath.Join(a.Dir, "index.json")
	if text, err := os.ReadFile(kept); err == nil {
		var index Index
		if json.Unmarshal(text, &index) == nil && len(index) > 0 {
			return index, nil
		}
	}
	var stderr bytes.Buffer
	cmd := a.command(ctx, "apt-cache", "dumpavail")
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("read package lists: %w: %s", err, lastLine(stderr.Bytes()))
	}
	index := parseIndex(string(out))
	if len(index) == 0 {
		return nil, fmt.Errorf("package lists of %s are empty: run ubvm setup again", a.Mirror)
	}
	text, err := json.Marshal(index)
	if err != nil {
		return nil, err
	}
	return index, os.WriteFile(kept, text, 0o644)
}

// Download fetches packages into dir and returns their file names.
func (a *Apt) Download(ctx context.Context, dir string, packages []Package) ([]string, error) {
	args := []string{"-q", "download"}
	for _, p := range packages {
		args = append(args, p.Name+"="+p.Version)
	}
	cmd := a.command(ctx, "apt-get", args...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("download %s: %w: %s", strings.Join(args[2:], " "), err, lastLine(out))
	}
	return filepath.Glob(filepath.Join(dir, "*.deb"))
}

func lastLine(out []byte) string {
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	return lines[len(lines)-1]
}
