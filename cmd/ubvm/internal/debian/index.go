package debian

import "strings"

// A Package is one version of a binary package.
type Package struct {
	Name, Version string
	Depends       []string `json:",omitempty"` // names only, first alternative; of kernels only
}

// Index holds the packages by name; of several versions the first listed, which apt-cache
// dumpavail makes the newest.
type Index map[string]Package

func parseIndex(text string) Index {
	index := Index{}
	for _, s := range stanzas(text) {
		p := Package{Name: s["package"], Version: s["version"]}
		if p.Name == "" || p.Version == "" {
			continue
		}
		if _, seen := index[p.Name]; seen {
			continue
		}
		if strings.HasPrefix(p.Name, "linux-image-") {
			p.Depends = dependencies(s["depends"])
		}
		index[p.Name] = p
	}
	return index
}

func dependencies(field string) []string {
	var names []string
	for dep := range strings.SplitSeq(field, ",") {
		if f := strings.Fields(dep); len(f) > 0 {
			names = append(names, f[0])
		}
	}
	return names
}
