"""(filled by the modules below)"""
