package repo

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// longFile is from how many lines on a file is worth a look; it is no limit.
const longFile = 500

// TestLongFiles lists long files in its log.
func TestLongFiles(t *testing.T) {
	for _, f := range files(t) {
		if !strings.HasSuffix(f, ".go") || strings.HasSuffix(f, "_test.go") {
			continue
		}
		text := read(t, f)
		if n := strings.Count(text, "\n"); n > longFile && !generated.MatchString(text) {
			t.Logf("%s has %d lines", f, n)
		}
	}
}

var generated = regexp.MustCompile(`(?m)^// Code generated .* DO NOT EDIT\.$`)

// habit is something that no text file of the tree may contain.
type habit struct {
	name string
	bad  *regexp.Regexp
	// except are the files that may.
	except []string
}

var habits = []habit{
	{name: "a note to do something later", bad: regexp.MustCompile(`\b(TO` + `DO|FIX` + `ME|XX` + `X)\b`)},
	{
		name:   "a path of somebody's machine",
		bad:    regexp.MustCompile(`(^|[^\w.$~/-])/(home/\w|Users/\w|work/|root/\w)`),
		except: []string{"internal/repo/files_test.go"},
	},
	{name: "a merge conflict", bad: regexp.MustCompile(`(?m)^(<{7}|>{7}) `)},
}

func TestHabits(t *testing.T) {
	for _, f := range files(t) {
		text := read(t, f)
		if !isText(text) {
			continue
		}
		for _, h := range habits {
			if at := h.bad.FindStringIndex(text); at != nil && !slices.Contains(h.except, f) {
				t.Errorf("%s:%d: %s: %q", f, 1+strings.Count(text[:at[0]], "\n"), h.name,
					text[at[0]:at[1]])
			}
		}
	}
}

// TestHabitPatterns shows that the patterns find what they are for, and no more.
func TestHabitPatterns(t *testing.T) {
	for _, c := range []struct {
		text string
		bad  bool
	}{
		{"// TO" + "DO: later", true},
		{"FIX" + "ME", true},
		{"see /home/ann/src", true},
		{`dir := "/work/tree"`, true},
		{"/root/go/pkg", true},
		{"HOME=/root", false},
		{"/dev/disk/by-id/x and $HOME/work/x", false},
		{"testdata/work/x", false},
		{"TODOS", false},
	} {
		found := false
		for _, h := range habits {
			found = found || h.bad.MatchString(c.text)
		}
		if found != c.bad {
			t.Errorf("%q: found %t, want %t", c.text, found, c.bad)
		}
	}
}

// hosts that the tree may name. Others are mirrors, registries or machines of somebody's own, which
// do not belong in it; add what does.
var hosts = regexp.MustCompile(`^(.*\.example|(.*\.)?(debian\.org|kernel\.org|go\.dev|golang\.org|` +
	`github\.com|gitlab\.com|apache\.org|localhost))$`)

var urlHost = regexp.MustCompile(`\bhttps?://([A-Za-z0-9.-]+)`)

func TestHosts(t *testing.T) {
	for _, f := range files(t) {
		text := read(t, f)
		if !isText(text) {
			continue
		}
		for _, m := range urlHost.FindAllStringSubmatch(text, -1) {
			if !hosts.MatchString(strings.Trim(m[1], ".-")) {
				t.Errorf("%s: %s", f, m[0])
			}
		}
		for _, h := range ownHosts() {
			if strings.Contains(text, h) {
				t.Errorf("%s names %s, which this machine uses as a registry", f, h)
			}
		}
	}
}

// ownHosts are the registries that this machine is set up to use, but for the public ones.
func ownHosts() (list []string) {
	for _, name := range []string{"GOPROXY", "UBCACHE_DEBIAN_MIRROR", "http_proxy", "https_proxy"} {
		for _, m := range urlHost.FindAllStringSubmatch(os.Getenv(name), -1) {
			if !hosts.MatchString(m[1]) {
				list = append(list, m[1])
			}
		}
	}
	return list
}

func TestLicense(t *testing.T) {
	text := read(t, "LICENSE")
	for _, want := range []string{
		"Apache License", "Version 2.0, January 2004", "END OF TERMS AND CONDITIONS",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("LICENSE lacks %q", want)
		}
	}
}
