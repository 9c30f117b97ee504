package debian

import (
	"os"
	"path/filepath"
	"testing"
)

func TestMirror(t *testing.T) {
	for name, c := range map[string]struct {
		files map[string]string
		want  string
	}{
		"deb822": {map[string]string{"sources.list.d/debian.sources": `Types: deb deb-src
# a comment
URIs: http://mirror.example/debian/
Suites: bookworm bookworm-updates
Components: main

Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main
`}, "http://mirror.example/debian"},
		"one line": {map[string]string{"sources.list": `# deb http://old.example/debian bookworm main
deb-src http://src.example/debian bookworm main
deb http://security.example/debian-security bookworm-security main
deb [arch=amd64 signed-by=/k.gpg]   http://mirror.example/debian bookworm main contrib # here
`}, "http://mirror.example/debian"},
		"publisher with suite of Debian's name": {map[string]string{
			"sources.list.d/a.list": "deb https://tools.example/apt stable main\n",
			"sources.list":          "",
			"sources.list.d/debian.sources": "Types: deb\nURIs:\n http://mirror.example/debian\n" +
				"Suites: trixie\nComponents: main\n",
		}, "http://mirror.example/debian"},
		"unusual address": {map[string]string{
			"sources.list": "deb http://proxy.example/remote/deb-main bookworm main\n",
		}, "http://proxy.example/remote/deb-main"},
		"disabled": {map[string]string{
			"sources.list.d/debian.sources": "Enabled: no\nTypes: deb\n" +
				"URIs: http://mirror.example/debian\nSuites: trixie\nComponents: main\n",
		}, ""},
		"none": {nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv(MirrorEnv, "")
			etc := t.TempDir()
			for file, text := range c.files {
				path := filepath.Join(etc, file)
				if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			got, err := Mirror(etc)
			if got != c.want || (err == nil) != (c.want != "") {
				t.Errorf("got %q, %v; want %q", got, err, c.want)
			}
		})
	}
}

func TestMirrorFile(t *testing.T) {
	t.Setenv(MirrorEnv, "")
	etc := t.TempDir()
	list := filepath.Join(etc, "mirrors.list")
	sources := "Types: deb\nURIs: mirror+file:" + list + "\nSuites: bookworm\nComponents: main\n"
	if err := os.MkdirAll(filepath.Join(etc, "sources.list.d"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		list: "# first\nhttps://mirror.example/debian/\thigh\n", filepath.Join(etc, "sources.list.d/d.sources"): sources,
	} {
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := Mirror(etc); err != nil || got != "https://mirror.example/debian" {
		t.Errorf("got %q, %v", got, err)
	}
	t.Setenv(MirrorEnv, "http://chosen.example/debian/")
	if got, err := Mirror(etc); err != nil || got != "http://chosen.example/debian" {
		t.Errorf("with %s: got %q, %v", MirrorEnv, got, err)
	}
}
