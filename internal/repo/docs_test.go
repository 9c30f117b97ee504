package repo

import (
	"bytes"
	"flag"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write docs/cli.md anew")

var (
	mdLink  = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	mdFence = regexp.MustCompile("(?ms)^```.*?^```$")
	mdHead  = regexp.MustCompile(`(?m)^#+ +(.*)$`)
)

// TestLinks follows the links between the documents.
func TestLinks(t *testing.T) {
	anchors := map[string]map[string]bool{}
	seen := 0
	for _, f := range files(t) {
		if !strings.HasSuffix(f, ".md") {
			continue
		}
		for _, m := range mdLink.FindAllStringSubmatch(mdFence.ReplaceAllString(read(t, f), ""), -1) {
			u, err := url.Parse(m[1])
			if err != nil {
				t.Errorf("%s: %v", f, err)
				continue
			}
			if u.Scheme != "" {
				continue
			}
			seen++
			to := f
			if u.Path != "" {
				to = path.Join(path.Dir(f), u.Path)
			}
			if _, err := os.Stat(filepath.Join(root, to)); err != nil {
				t.Errorf("%s: link to %s, which does not exist", f, m[1])
				continue
			}
			if u.Fragment == "" || !strings.HasSuffix(to, ".md") {
				continue
			}
			if anchors[to] == nil {
				anchors[to] = anchorsOf(read(t, to))
			}
			if !anchors[to][u.Fragment] {
				t.Errorf("%s: link to %s: no such heading", f, m[1])
			}
		}
	}
	if seen == 0 {
		t.Error("no links found")
	}
}

var notInAnchor = regexp.MustCompile(`[^\p{L}\p{N}_ -]`)

// anchorsOf are the names by which the headings of a document are linked to.
func anchorsOf(text string) map[string]bool {
	list := map[string]bool{}
	for _, m := range mdHead.FindAllStringSubmatch(mdFence.ReplaceAllString(text, ""), -1) {
		a := notInAnchor.ReplaceAllString(strings.ToLower(strings.TrimSpace(m[1])), "")
		list[strings.ReplaceAll(a, " ", "-")] = true
	}
	return list
}

// TestMakeTargets checks that what the documents tell to make can be made.
func TestMakeTargets(t *testing.T) {
	targets := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^([a-z-]+(?: [a-z-]+)*):(?:[^=]|$)`).FindAllStringSubmatch(
		read(t, "Makefile")+read(t, "testdata/vm/vm.mk"), -1) {
		for _, name := range strings.Fields(m[1]) {
			targets[name] = true
		}
	}
	command := regexp.MustCompile("(?m)(?:`|^ *)make ([a-z-]+)")
	for _, f := range files(t) {
		if !strings.HasSuffix(f, ".md") {
			continue
		}
		for _, m := range command.FindAllStringSubmatch(read(t, f), -1) {
			if !targets[m[1]] {
				t.Errorf("%s: make %s does not exist", f, m[1])
			}
		}
	}
}

// TestNamedTests checks that the tests exist that docs/reliability.md says show something.
func TestNamedTests(t *testing.T) {
	have := map[string]bool{}
	declared := regexp.MustCompile(`(?m)^func (Test\w+)\(`)
	for _, f := range files(t) {
		if strings.HasSuffix(f, "_test.go") {
			for _, m := range declared.FindAllStringSubmatch(read(t, f), -1) {
				have[m[1]] = true
			}
		}
	}
	named := regexp.MustCompile("`(Test\\w+)`").FindAllStringSubmatch(read(t, "docs/reliability.md"), -1)
	if len(named) < 10 {
		t.Errorf("docs/reliability.md names only %d tests", len(named))
	}
	for _, m := range named {
		if !have[m[1]] {
			t.Errorf("docs/reliability.md: there is no %s", m[1])
		}
	}
}

const cliIntro = `# The commands of ubcache

Written by ` + "`make docs`" + ` from the help texts; a test fails if they differ.
`

// TestCLI compares docs/cli.md with what the program prints.
func TestCLI(t *testing.T) {
	bin := filepath.Join(t.TempDir(), "ubcache")
	build := exec.Command("go", "build", "-buildvcs=false", "-o", bin, "./cmd/ubcache")
	build.Dir = root
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	var b bytes.Buffer
	b.WriteString(cliIntro)
	if n := describe(t, &b, bin, nil); n < 10 {
		t.Fatalf("only %d commands found", n)
	}
	file := filepath.Join(root, "docs", "cli.md")
	if *update {
		if err := os.WriteFile(file, b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	have, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(have, b.Bytes()) {
		t.Errorf("docs/cli.md differs from the help texts, first at:\n%s\nmake docs writes it anew",
			firstDifference(string(have), b.String()))
	}
}

var helpCommand = regexp.MustCompile(`(?m)^  ([a-z-]+) +\S`)

// describe writes the help of a command and of all below it, and returns how many there are.
func describe(t *testing.T, b *bytes.Buffer, bin string, command []string) int {
	t.Helper()
	out, err := exec.Command(bin, append(command, "--help")...).Output()
	if err != nil {
		t.Fatalf("%s --help: %v", strings.Join(command, " "), err)
	}
	name := strings.Join(append([]string{"ubcache"}, command...), " ")
	fmt.Fprintf(b, "\n## %s\n\n```\n%s\n```\n", name, strings.TrimSpace(string(out)))
	n := 1
	_, list, _ := strings.Cut(string(out), "\nAvailable Commands:\n")
	list, _, _ = strings.Cut(list, "\n\n")
	for _, m := range helpCommand.FindAllStringSubmatch(list, -1) {
		if m[1] != "help" && m[1] != "completion" {
			n += describe(t, b, bin, append(command[:len(command):len(command)], m[1]))
		}
	}
	return n
}

func firstDifference(have, want string) string {
	h, w := strings.Split(have, "\n"), strings.Split(want, "\n")
	for i := range min(len(h), len(w)) {
		if h[i] != w[i] {
			return fmt.Sprintf("line %d\n  documented: %s\n  printed:    %s", i+1, h[i], w[i])
		}
	}
	return fmt.Sprintf("line %d, where one of them ends", min(len(h), len(w))+1)
}

// TestUnitInDocs compares the systemd unit in docs/operation.md with the one that is installed, but for its comments.
func TestUnitInDocs(t *testing.T) {
	m := regexp.MustCompile("(?ms)^```ini\n(\\[Unit\\].*?)^```$").FindStringSubmatch(read(t, "docs/operation.md"))
	if m == nil {
		t.Fatal("no unit found")
	}
	unit := regexp.MustCompile(`(?m)^#.*\n`).ReplaceAllString(read(t, "packaging/ubcache@.service"), "")
	unit = strings.ReplaceAll(unit, "/usr/sbin/", "/usr/local/sbin/")
	if m[1] != unit {
		t.Errorf("the unit in docs/operation.md is another one, first at:\n%s", firstDifference(m[1], unit))
	}
}

// TestGoInDocs builds the programs in the documents.
func TestGoInDocs(t *testing.T) {
	fence := regexp.MustCompile("(?ms)^```go\n(package main.*?)^```$")
	built := 0
	for _, f := range files(t) {
		if !strings.HasSuffix(f, ".md") {
			continue
		}
		for _, m := range fence.FindAllStringSubmatch(read(t, f), -1) {
			built++
			file := filepath.Join(t.TempDir(), "main.go")
			if err := os.WriteFile(file, []byte(m[1]), 0o644); err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command("go", "build", "-o", os.DevNull, file)
			cmd.Dir = root
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("a program in %s: %v\n%s", f, err, out)
			}
		}
	}
	if built == 0 {
		t.Error("no program found")
	}
}
