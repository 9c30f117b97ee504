package debian

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Newest names the highest version of any series.
const Newest = "newest"

// Series are the kernels that the project is tested on: the two long-term ones and the newest.
var Series = []string{"6.12", "6.18", Newest}

// A Kernel is the choice for one series: the release string that uname shows and the packages
// that together hold image, configuration and modules.
type Kernel struct {
	Series   string
	Release  string // e.g. 6.12.48+deb13-cloud-amd64
	Packages []Package
}

var imageName = regexp.MustCompile(`^linux-image-(([0-9]+(?:\.[0-9]+)+)[^-]*-cloud-amd64)$`)

// ResolveKernel chooses the newest cloud kernel of a series ("6.12", "7.1", …, or [Newest]).
func (index Index) ResolveKernel(series string) (Kernel, error) {
	var best string
	var bestVersion []int
	for name := range index {
		m := imageName.FindStringSubmatch(name)
		if m == nil || !inSeries(m[2], series) {
			continue
		}
		v := numbers(m[2])
		c := slices.Compare(v, bestVersion)
		if c > 0 || c == 0 && m[1] > best {
			best, bestVersion = m[1], v
		}
	}
	if best == "" {
		return Kernel{}, fmt.Errorf("no cloud kernel of series %s in %s: the archive has dropped it",
			series, strings.Join(Suites, ", "))
	}
	return Kernel{Series: series, Release: best, Packages: index.kernelParts(best)}, nil
}

// kernelParts follows the image's dependencies to the packages of the same release: up to 6.18
// there is one package, later ones are split into linux-binary, linux-modules and linux-base.
func (index Index) kernelParts(release string) []Package {
	image := index["linux-image-"+release]
	parts := []Package{image}
	for _, dep := range image.Depends {
		if p, ok := index[dep]; ok && strings.HasSuffix(dep, "-"+release) {
			parts = append(parts, p)
		}
	}
	return parts
}

// LinuxSource returns the source package and the user-space headers of the newest series, for
// building the kernel's own ublk server.
func (index Index) LinuxSource() (Package, error) {
	var best Package
	var bestVersion []int
	for name, p := range index {
		v, ok := strings.CutPrefix(name, "linux-source-")
		if !ok || strings.Trim(v, "0123456789.") != "" {
			continue
		}
		if n := numbers(v); slices.Compare(n, bestVersion) > 0 {
			best, bestVersion = p, n
		}
	}
	if best.Name == "" {
		return best, fmt.Errorf("no linux-source package in %s", strings.Join(Suites, ", "))
	}
	return best, nil
}

func inSeries(version, series string) bool {
	return series == Newest || version == series || strings.HasPrefix(version, series+".")
}

func numbers(version string) []int {
	var ns []int
	for s := range strings.SplitSeq(version, ".") {
		n, err := strconv.Atoi(s)
		if err != nil {
			break
		}
		ns = append(ns, n)
	}
	return ns
}
