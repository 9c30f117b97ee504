package debian

import (
	"strings"
	"testing"
)

const lists = `Package: linux-image-6.12.9+deb13-cloud-amd64
Version: 6.12.9-1
Depends: kmod, linux-base

Package: linux-image-6.12.48+deb13-cloud-amd64
Version: 6.12.48-1
Depends: kmod, linux-base (>= 4.12~), initramfs-tools (>= 0.120) | linux-initramfs-tool

Package: linux-image-6.12.50+deb13-amd64
Version: 6.12.50-1

Package: linux-image-6.12.99+deb13-cloud-amd64-unsigned
Version: 6.12.99-1

Package: linux-image-6.120.1+deb13-cloud-amd64
Version: 6.120.1-1

Package: linux-image-7.3.4+deb13-cloud-amd64
Version: 7.3.4-1~bpo13+1
Depends: dracut | initramfs-tools, linux-base-7.3.4+deb13-cloud-amd64 (= 7.3.4-1~bpo13+1),
 linux-binary-7.3.4+deb13-cloud-amd64 (= 7.3.4-1~bpo13+1), linux-modules-7.3.4+deb13-cloud-amd64 (= 7.3.4-1~bpo13+1)

Package: linux-base-7.3.4+deb13-cloud-amd64
Version: 7.3.4-1~bpo13+1

Package: linux-binary-7.3.4+deb13-cloud-amd64
Version: 7.3.4-1~bpo13+1

Package: linux-modules-7.3.4+deb13-cloud-amd64
Version: 7.3.4-1~bpo13+1

Package: linux-image-cloud-amd64
Version: 7.3.4-1~bpo13+1

Package: linux-base
Version: 4.12

Package: linux-source-7.3
Version: 7.3.4-1~bpo13+1

Package: linux-source-6.12
Version: 6.12.48-1

Package: linux-source
Version: 6.12.48-1
`

func TestResolveKernel(t *testing.T) {
	index := parseIndex(lists)
	for _, c := range []struct{ series, release, packages string }{
		{"6.12", "6.12.48+deb13-cloud-amd64", "linux-image"},
		{"6.12.9", "6.12.9+deb13-cloud-amd64", "linux-image"},
		{"7.3", "7.3.4+deb13-cloud-amd64", "linux-image linux-base linux-binary linux-modules"},
		{Newest, "7.3.4+deb13-cloud-amd64", "linux-image linux-base linux-binary linux-modules"},
		{"6", "6.120.1+deb13-cloud-amd64", "linux-image"},
	} {
		k, err := index.ResolveKernel(c.series)
		if err != nil {
			t.Errorf("%s: %v", c.series, err)
			continue
		}
		var parts []string
		for _, p := range k.Packages {
			name, ok := strings.CutSuffix(p.Name, "-"+c.release)
			if !ok || p.Version == "" {
				t.Errorf("%s: package %+v is not of release %s", c.series, p, c.release)
			}
			parts = append(parts, name)
		}
		if got := strings.Join(parts, " "); k.Release != c.release || got != c.packages {
			t.Errorf("%s: got %s of %s; want %s of %s", c.series, k.Release, got, c.release, c.packages)
		}
	}
}

func TestResolveKernelGone(t *testing.T) {
	_, err := parseIndex(lists).ResolveKernel("6.18")
	if err == nil || !strings.Contains(err.Error(), "6.18") || strings.Contains(err.Error(), "\n") {
		t.Errorf("a series that is gone: %v", err)
	}
}

func TestLinuxSource(t *testing.T) {
	p, err := parseIndex(lists).LinuxSource()
	if err != nil || p.Name != "linux-source-7.3" {
		t.Errorf("got %+v, %v", p, err)
	}
}
